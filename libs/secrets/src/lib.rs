//! gantry-secrets
