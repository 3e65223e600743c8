//! gantry-eventstore
