//! Doing it again when a file changes.

use crate::{Exit, Failure};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How often files are looked at. Editors write a file in several steps, so sooner is not better.
const PAUSE: Duration = Duration::from_millis(300);

/// Runs `body` now and whenever one of the files changes, until the process is interrupted.
pub(super) fn repeat(
    files: impl Fn() -> Vec<PathBuf>,
    mut body: impl FnMut() -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    loop {
        let before = stamps(&files());
        match body() {
            Ok(_) => {}
            Err(failure) => anstream::eprintln!("gantry: {failure}"),
        }
        eprintln!("Watching; Ctrl+C ends it.");
        while stamps(&files()) == before {
            #[expect(
                clippy::disallowed_methods,
                reason = "files are looked at now and then: nothing tells of their change"
            )]
            std::thread::sleep(PAUSE);
        }
        eprintln!();
    }
}

fn stamps(files: &[PathBuf]) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        (path.clone(), metadata.and_then(|metadata| metadata.modified().ok()), length)
    };
    files.iter().map(stamp).collect()
}
