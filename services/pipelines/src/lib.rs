//! gantry-pipelines
