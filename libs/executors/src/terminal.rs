//! Pseudo-terminals for commands.

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
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf, unix::AsyncFd};

/// What a step writes, as it writes it: output processing is off, so the bytes are the step's own.
pub(crate) struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

/// The step's end, kept open until the step has opened it: before that a read would say that all is over.
pub(crate) struct Slave {
    pub(crate) path: PathBuf,
    _fd: OwnedFd,
}

/// Both ends of a terminal of 80 columns: ours, which does not block, and the command's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None)?;
    for fd in [pair.master.as_fd(), pair.slave.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut modes = tcgetattr(&pair.slave)?;
    modes.output_flags.remove(OutputFlags::OPOST);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
    fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
    Ok((pair.master, pair.slave))
}

impl Terminal {
    /// A terminal that belongs to `owner`.
    pub(crate) fn open(owner: Option<(u32, u32)>) -> io::Result<(Self, Slave)> {
        let (master, slave) = pair()?;
        if let Some((uid, gid)) = owner {
            fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let path = ttyname(&slave)?;
        #[expect(
            unsafe_code,
            reason = "an OwnedFd owns its descriptor, and it is neither replaced nor closed before"
        )]
        // SAFETY: as the reason says.
        let fd = unsafe { AsyncFd::register(master) }?;
        Ok((Self { fd }, Slave { path, _fd: slave }))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let room = buf.initialize_unfilled();
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), room).map_err(io::Error::from)) {
                // No process has the terminal open any more.
                Ok(Err(e)) if e.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}
