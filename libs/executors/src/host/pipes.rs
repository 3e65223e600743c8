//! Named pipes between the agent and a command: the helper opens them by name, which needs no passing of
//! descriptors.

use crate::{Input, Process, wire::Ends};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::stat::Mode,
    unistd::mkfifo,
};
use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tokio::{
    net::unix::pipe::{OpenOptions, Receiver, Sender},
    sync::oneshot,
};

/// Bytes that a pipe holds: each time that one is full or empty, two processes wait for each other.
const CAPACITY: i32 = 1 << 20;

/// The agent's ends. The folder with the names goes when they have served.
pub(super) struct Pipes {
    folder: PathBuf,
    /// Also open for reading: a pipe without a reader cannot be opened for writing alone.
    _input: Sender,
    output: Receiver,
    errors: Receiver,
    /// Kept until the command has its own: without any writer a read would say that all is over.
    _writers: [fs::File; 2],
}

impl Pipes {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for name in ["input", "output", "errors"] {
            mkfifo(&folder.join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let reader = |name: &str| OpenOptions::new().open_receiver(folder.join(name));
        let writer = |name: &str| {
            fs::File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(folder.join(name))
        };
        let (output, errors) = (reader("output")?, reader("errors")?);
        let input = OpenOptions::new().read_write(true).open_sender(folder.join("input"))?;
        for refused in [
            fcntl(&input, FcntlArg::F_SETPIPE_SZ(CAPACITY)),
            fcntl(&output, FcntlArg::F_SETPIPE_SZ(CAPACITY)),
        ] {
            if let Err(e) = refused {
                // A user may own only so many pages of pipes: it is slower then.
                tracing::debug!(error = %e, "a pipe keeps its size");
            }
        }
        Ok(Self {
            _writers: [writer("output")?, writer("errors")?],
            _input: input,
            output,
            errors,
            folder: folder.to_owned(),
        })
    }

    /// Where the helper finds them.
    pub(super) fn ends(&self, inside: &Path) -> Ends {
        let path = |name: &str| inside.join(name);
        Ends::Fifos { input: path("input"), output: path("output"), errors: path("errors") }
    }

    pub(super) fn process(
        self,
        id: u64,
        exit: oneshot::Receiver<i32>,
        written: oneshot::Receiver<()>,
    ) -> Process {
        // The command is the only reader from here on, so that its end is the end of writing too.
        let input: Input = match OpenOptions::new().open_sender(self.folder.join("input")) {
            Ok(sender) => Box::new(sender),
            // It has ended already.
            Err(_) => Box::new(tokio::io::duplex(1).0),
        };
        let _ = fs::remove_dir_all(&self.folder);
        Process {
            id,
            output: Box::new(self.output),
            errors: Some(Box::new(self.errors)),
            input: Some(input),
            resize: None,
            exit,
            written,
        }
    }
}
