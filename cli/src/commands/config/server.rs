//! Orbs of the server, for commands that compile without it: asked for only when no folder has them.

use crate::commands::orb::Registry;
use crate::place::Place;
use crate::{Client, Exit, Failure, Global};
use compiler::{OrbError, OrbRef, OrbSource, OrbText, OrbVersion};
use orb_folder::OrbCache;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one orb may take: an editor waits for it.
const LIMIT: Duration = Duration::from_secs(15);
/// How long an answer is believed.
const LATELY: Duration = Duration::from_secs(60);

/// Where orbs of servers are kept.
pub(super) fn cache() -> OrbCache {
    let own = std::env::var_os("GANTRY_CACHE_DIR").map(PathBuf::from);
    let users = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = own.or_else(|| Some(users().or_else(home)?.join("gantry")));
    OrbCache::new(folder.unwrap_or_else(std::env::temp_dir).join("orbs"))
}

/// When it was given, and what it was.
type Answer = (Instant, Result<OrbText, OrbError>);

/// The registry of the server that the flags name, or that runs from this folder.
pub(super) struct ServerOrbs {
    global: Global,
    cache: OrbCache,
    /// What was asked for lately: a run over many files uses the same orbs again and again, and so does somebody
    /// who types.
    known: Mutex<HashMap<String, Answer>>,
}

impl ServerOrbs {
    /// `None`: no server is configured. Nothing is connected before an orb is asked for.
    pub fn of(global: &Global) -> Option<Self> {
        let found = global.server.is_some() || Place::find(global).is_ok();
        found.then(|| Self { global: global.clone(), cache: cache(), known: Mutex::default() })
    }

    fn ask(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let unavailable = |failure: Failure| OrbError::Unavailable(failure.to_string());
        let OrbRef::Registry { namespace, name, version } = reference else {
            return Err(OrbError::Unavailable(format!(
                "{reference} is an address, and only registries are asked"
            )));
        };
        let server = Place::find(&self.global).map_err(unavailable)?.server;
        if matches!(version, OrbVersion::Exact(..))
            && let Some(kept) = self.cache.get(&server, &reference.to_string())
        {
            return Ok(kept);
        }
        let found = fetched(&self.global, &reference.to_string())?;
        let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
        let exact = format!("{namespace}/{name}@{}", text("version"));
        let source = text("source");
        // What is in development may be published again, with another text; where nothing can be kept, the orb is
        // there all the same.
        let kept = match version {
            OrbVersion::Dev(_) => None,
            _ => self.cache.put(&server, &exact, source).ok(),
        };
        Ok(kept.unwrap_or_else(|| OrbText::new(exact, source, orb_folder::digest(source))))
    }
}

/// A version with its source. Compiling is not asynchronous: the question has a thread of its own, which waits.
fn fetched(global: &Global, reference: &str) -> Result<Value, OrbError> {
    let unavailable = |failure: Failure| OrbError::Unavailable(failure.to_string());
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| OrbError::Unavailable(error.to_string()))?;
        runtime.block_on(async {
            let client = Client::connect(global).map_err(unavailable)?;
            let server = client.server().to_owned();
            match tokio::time::timeout(LIMIT, Registry::of(client).version(reference)).await {
                Ok(Ok(found)) => Ok(found),
                Ok(Err(failure)) if failure.exit == Exit::NotFound => {
                    Err(OrbError::NotFound(Some(format!("{server} has no {reference}"))))
                }
                Ok(Err(failure)) => Err(unavailable(failure)),
                Err(_) => Err(OrbError::Unavailable(format!("{server} does not answer"))),
            }
        })
    };
    std::thread::scope(|scope| scope.spawn(ask).join())
        .unwrap_or_else(|_| Err(OrbError::Unavailable("the question failed".to_owned())))
}

impl OrbSource for ServerOrbs {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let key = reference.to_string();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&key) {
            Some((asked, answer)) if asked.elapsed() < LATELY => answer.clone(),
            _ => {
                let answer = self.ask(reference);
                known.insert(key, (Instant::now(), answer.clone()));
                answer
            }
        }
    }
}
