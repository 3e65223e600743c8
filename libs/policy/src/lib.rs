//! Config policies: Rego bundles that decide whether a pipeline may run (config-language §26).
//!
//! Pure: texts and values in, a decision out. The evaluator is in process; a policy reaches neither files nor the
//! network, and has a time limit.
//!
//! ```ignore
//! let bundle = Bundle::parse(&files)?;
//! let decision = bundle.decide(&input, &meta);
//! if decision.blocks() { /* the pipeline does not run */ }
//! ```

mod bundle;
mod calls;
mod decision;
mod suite;

pub use bundle::{Bundle, BundleError, MAX_BYTES, Policy};
pub use decision::{Decision, Status, Violation};
pub use suite::{Case, Compile, Outcome, cases};
