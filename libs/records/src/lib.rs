//! gantry-records
