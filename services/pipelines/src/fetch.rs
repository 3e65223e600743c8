//! The configuration as it is in the repository.

use crate::State;
use contracts::{domain::Project, pipelines::PipelineError};
use std::time::Duration;
use vcs::Reader;

/// Where the configuration lies.
pub(crate) const PATH: &str = ".circleci/config.yml";
/// Largest configuration in bytes (security §5).
const LIMIT: u64 = 1 << 20;
/// A delivery's transaction is open meanwhile, and lives for 5 s without a statement.
const PATIENCE: Duration = Duration::from_secs(4);

/// The configuration, or why the pipeline has none.
pub(crate) type Source = Result<String, PipelineError>;

/// Reads the configuration at a commit. What the author can put right is a pipeline's error; an `Err` is worth
/// another try.
pub(crate) async fn config(state: &State, project: &Project, revision: &str) -> anyhow::Result<Source> {
    match state.git.repository(&project.org, &project.name).and_then(|repository| repository.read()) {
        Ok(mut reader) => read(&mut reader, revision).await,
        Err(why @ (vcs::Error::NoRepository(_) | vcs::Error::Name(_))) => {
            Ok(Err(error("config-fetch", why.to_string())))
        }
        Err(why) => Err(why.into()),
    }
}

/// The same of a repository that is being read.
pub(crate) async fn read(reader: &mut Reader, revision: &str) -> anyhow::Result<Source> {
    Ok(match tokio::time::timeout(PATIENCE, reader.file(revision, PATH, LIMIT)).await? {
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(text),
            _ => Err(error("config", format!("{PATH}: the file is not UTF-8 text"))),
        },
        Ok(None) => Err(error("config-fetch", format!("{PATH} does not exist at {revision}"))),
        Err(vcs::Error::TooLarge { size, limit, .. }) => {
            Err(error("config", format!("{PATH}: the file has {size} bytes; at most {limit} are allowed")))
        }
        Err(why) => return Err(why.into()),
    })
}

fn error(kind: &str, message: String) -> PipelineError {
    PipelineError { kind: kind.to_owned(), message }
}
