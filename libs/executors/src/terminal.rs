//! The agent's end of a step's pseudo-terminal.

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr},
    unistd::{Gid, Uid, fchown, ttyname},
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};
use tokio::io::unix::AsyncFd;

/// What a step writes, as it writes it: output processing is off, so the bytes are the step's own.
pub struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

/// The step's end, kept open until the step has opened it: before that a read would say that all is over.
pub(crate) struct Slave {
    pub(crate) path: PathBuf,
    _fd: OwnedFd,
}

impl Terminal {
    /// A terminal of 80 columns that belongs to `owner`.
    pub(crate) fn open(owner: Option<(u32, u32)>) -> io::Result<(Self, Slave)> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None)?;
        for fd in [pair.master.as_fd(), pair.slave.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let mut modes = tcgetattr(&pair.slave)?;
        modes.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
        if let Some((uid, gid)) = owner {
            fchown(&pair.slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let path = ttyname(&pair.slave)?;
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
        #[expect(
            unsafe_code,
            reason = "an OwnedFd owns its descriptor, and it is neither replaced nor closed before"
        )]
        // SAFETY: as the reason says.
        let fd = unsafe { AsyncFd::register(pair.master) }?;
        Ok((Self { fd }, Slave { path, _fd: pair.slave }))
    }

    /// Reads what there is, or waits for it; 0 when no process has the terminal open any more. Dropping the
    /// future loses nothing.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), buf).map_err(io::Error::from)) {
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => return Ok(0),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}
