//! Failpoints of commits and acknowledgements, with this crate's error.

use crate::Error;

/// Does what `GANTRY_FAILPOINTS` says about this point; nothing, unless it is set.
///
/// # Errors
/// The point's action is `error` and its count is not used up.
pub async fn failpoint(name: &str) -> Result<(), Error> {
    failpoints::failpoint(name).await.map_err(|failpoints::Hit(name)| Error::Failpoint(name))
}
