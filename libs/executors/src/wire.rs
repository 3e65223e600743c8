//! What agent and helper say to each other: one JSON document a line, over the helper's standard input and
//! output. The environment with its secrets goes this way, because arguments can be read by other processes.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// Mount and PID namespaces, made with the privileges of root.
    Namespaces,
    /// The same in a user namespace.
    UserNamespaces,
    /// No namespaces: the helper reaps and kills the tree of its descendants.
    Tree,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) mode: Mode,
    /// Folder that appears at another place.
    pub(crate) bind: Option<(PathBuf, PathBuf)>,
    pub(crate) hide: Vec<PathBuf>,
    pub(crate) cgroup: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Spawn(Spawn),
    /// To every process of the session that a step began.
    Signal {
        id: u64,
        signal: i32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) id: u64,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) tty: PathBuf,
    pub(crate) exec: Exec,
}

/// What the last helper does to itself before it becomes the step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) identity: Option<Ids>,
    /// In a user namespace: the ids to have again in one more of it, which takes the rights over the mounts away.
    pub(crate) inner: Option<(u32, u32)>,
    pub(crate) dir: PathBuf,
    pub(crate) make_dir: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Ready,
    Unable { message: String },
    Spawned { id: u64 },
    Failed { id: u64, message: String },
    Exited { id: u64, code: i32 },
}
