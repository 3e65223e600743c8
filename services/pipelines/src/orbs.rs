//! The orb registry: namespaces, orbs, their versions and sources (config-language §18).

mod lookup;
mod namespaces;
mod publish;
mod queries;
mod source;
mod validate;

pub(crate) use lookup::resolve;
pub(crate) use namespaces::{create_namespace, delete_namespace, get_namespace, rename_namespace};
pub(crate) use publish::{promote, publish};
pub(crate) use queries::{create, get, list, set_listed, version};
pub(crate) use source::{Shelf, URL_ORBS};
pub(crate) use validate::validate;

use bus::once::Failure;
use contracts::Refusal;

/// A name of a namespace or an orb: lower-case letters, digits, `-` and `_` (config-language §18.1).
fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if first && rest && name.len() <= 100 {
        return Ok(());
    }
    let message = format!(
        "\"{name:.100}\" cannot be the name of {what}: it begins with a lower-case letter or a digit and has only \
         lower-case letters, digits, `-` and `_`, at most 100 of them"
    );
    Err(Refusal::new("invalid", message))
}

/// A failure of ours, told to the log.
fn failed(error: impl std::fmt::Display + 'static) -> Failure {
    Failure(bus::failed(crate::NAME)(error))
}
