//! gantry-dispatcher
