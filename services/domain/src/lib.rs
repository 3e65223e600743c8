//! gantry-domain
