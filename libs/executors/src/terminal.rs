//! Pseudo-terminals for commands.

use crate::{Resize, Size};
use nix::{
    errno::Errno,
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// What a step writes, as it writes it: output processing is off, so the bytes are the step's own.
pub(crate) struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

/// The step's end, kept open until the step has opened it: before that a read would say that all is over.
pub(crate) struct Slave {
    pub(crate) path: PathBuf,
    _fd: OwnedFd,
}

/// What a terminal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Output to be kept: 80 columns, and no byte is changed.
    Output,
    /// A person types.
    Session(Size),
}

/// Both ends of a terminal: ours, which does not block, and the command's.
pub(crate) fn pair(r#use: Use) -> io::Result<(OwnedFd, OwnedFd)> {
    let size = match r#use {
        Use::Output => Size::default(),
        Use::Session(size) => size,
    };
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None)?;
    for fd in [pair.master.as_fd(), pair.slave.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if r#use == Use::Output {
        let mut modes = tcgetattr(&pair.slave)?;
        modes.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
    }
    fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
    Ok((pair.master, pair.slave))
}

/// Gives the terminal of our end another size.
pub(crate) fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    let size =
        rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

impl Terminal {
    /// A terminal that belongs to `owner`.
    pub(crate) fn open(owner: Option<(u32, u32)>, r#use: Use) -> io::Result<(Self, Slave)> {
        let (master, slave) = pair(r#use)?;
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

    /// The same end once more, to type at, and its size. All of them dropped, the terminal hangs up.
    pub(crate) fn keyboard(&self) -> io::Result<(Self, Resize)> {
        let master = self.fd.get_ref().try_clone()?;
        let sized = master.try_clone()?;
        #[expect(
            unsafe_code,
            reason = "an OwnedFd owns its descriptor, and it is neither replaced nor closed before"
        )]
        // SAFETY: as the reason says.
        let fd = unsafe { AsyncFd::register(master) }?;
        let resize = move |size| {
            if let Err(error) = resize(&sized, size) {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        };
        Ok((Self { fd }, Box::new(resize)))
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(context))?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            // Asked first, whether or not it is known to be readable: a read carries over what still lies in the
            // kernel's queue, so that all that was written before it is found without waiting for a notification.
            match nix::unistd::read(self.fd.get_ref(), buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // No process has the terminal open any more.
                Err(Errno::EIO) => return Poll::Ready(Ok(())),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready!(self.fd.poll_read_ready(context))?.clear_ready(),
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}
