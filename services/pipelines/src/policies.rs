//! Config policies of organisations (config-language §26): bundles, whether they decide, and what they decided.

mod bundles;
mod decisions;
mod judge;
mod settings;

pub(crate) use bundles::{get, push};
pub(crate) use decisions::{decide, list};
pub(crate) use judge::{Cache, judge};
pub(crate) use settings::{set_settings, settings};

use bus::once::Failure;
use eventstore::Key;
use ids::OrgId;

const KIND: &str = "policies";

/// The lock of an organisation's bundle and settings.
fn lock(org: OrgId) -> Key {
    Key::new(KIND, org.uuid())
}

fn failed(error: impl std::fmt::Display + 'static) -> Failure {
    Failure(bus::failed(crate::NAME)(error))
}
