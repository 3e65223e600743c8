//! What every adapter of the bus must do.
