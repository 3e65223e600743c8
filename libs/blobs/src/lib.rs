//! gantry-blobs
