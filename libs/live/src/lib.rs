//! gantry-live
