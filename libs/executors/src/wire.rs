//! What agent and helper say to each other. On the machine: one JSON document a line, over the helper's standard
//! input and output. In a container the same documents travel in frames between the bytes of the commands
//! ([`crate::frames`]). The environment with its secrets goes this way, because arguments can be read by other
//! processes.

use crate::Size;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

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
    /// In a mount namespace, in this order.
    pub(crate) binds: Vec<Bind>,
    pub(crate) hide: Vec<PathBuf>,
    pub(crate) cgroup: Option<PathBuf>,
}

/// A folder or file that appears at another place too.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    pub(crate) read_only: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Spawn(Spawn),
    /// To every process of the session that a step began.
    Signal {
        id: u64,
        signal: i32,
    },
    /// Only in a container: elsewhere the agent reaches the files itself.
    Write {
        id: u64,
        path: PathBuf,
        text: String,
        mode: u32,
    },
    /// Only in a container: gives the terminal of a session another size.
    Resize {
        id: u64,
        size: Size,
    },
    /// Likewise.
    Exists {
        id: u64,
        path: PathBuf,
    },
    /// Whether the kernel has ended a process for want of memory since this was asked before.
    OutOfMemory {
        id: u64,
    },
    /// Only on the machine: into these control groups, with all that is started from now on.
    Enter {
        id: u64,
        groups: Vec<PathBuf>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) id: u64,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) io: Ends,
    pub(crate) exec: Exec,
}

/// Where the ends of a command's input and output are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ends {
    /// A terminal that the agent has opened.
    Tty { path: PathBuf, input: bool },
    /// The same, at which a person types.
    Session { path: PathBuf },
    /// Named pipes that the agent has opened.
    Fifos { input: PathBuf, output: PathBuf, errors: PathBuf },
    /// A terminal of the helper's, whose bytes travel in frames.
    FramedTty { input: bool },
    /// The same, at which a person types.
    FramedSession { size: Size },
    /// Pipes of the helper's, whose bytes travel in frames.
    FramedPipes,
}

/// What the last helper does to itself before it becomes the step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) identity: Option<Ids>,
    /// In a user namespace: the ids to have again in one more of it, which takes the rights over the mounts away.
    pub(crate) inner: Option<(u32, u32)>,
    pub(crate) dir: PathBuf,
    pub(crate) make_dir: bool,
    /// Whether the terminal at its standard input becomes the controlling one.
    #[serde(default)]
    pub(crate) controls: bool,
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
    /// The helper of a container stands, and this is what it found there.
    Guest(Guest),
    Unable {
        message: String,
    },
    Spawned {
        id: u64,
    },
    Failed {
        id: u64,
        message: String,
    },
    Exited {
        id: u64,
        code: i32,
    },
    /// Only in a container: all that a command had written when it exited has been sent.
    Written {
        id: u64,
    },
    /// A file was written, or looked for; or the control groups are entered.
    Done {
        id: u64,
        found: bool,
    },
}

/// What a container's first process sees.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Guest {
    pub(crate) uid: u32,
    pub(crate) user: String,
    pub(crate) home: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
}
