//! Places below one folder, reached so that no link leads out of it.

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, mkdirat},
};
use std::{
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// A folder that is the world for what is unpacked into it.
pub(crate) struct Tree {
    root: Arc<OwnedFd>,
    /// The folder that was opened last: neighbours come one after another.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
}

impl Tree {
    /// Opens a folder; makes it and those above it when they are missing. Whether it was made, too.
    pub(crate) fn open(path: &Path) -> std::io::Result<(Self, bool)> {
        let made = !path.exists();
        std::fs::create_dir_all(path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok((Self { root: Arc::new(root), last: None }, made))
    }

    pub(crate) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root)
    }

    /// Opens a folder below the root, and makes what is missing on the way; `made` hears of each.
    pub(crate) fn folder(&mut self, path: &Path, made: &mut dyn FnMut(&Path)) -> Result<Arc<OwnedFd>, Errno> {
        if path.as_os_str().is_empty() {
            return Ok(self.root());
        }
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(folder));
        }
        let folder = match beneath(&self.root, path) {
            Err(Errno::ENOENT) => {
                let parent = self.folder(path.parent().unwrap_or(Path::new("")), made)?;
                let name = path.file_name().ok_or(Errno::EINVAL)?;
                match mkdirat(&*parent, name, Mode::S_IRWXU) {
                    Ok(()) => made(path),
                    Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e),
                }
                beneath(&self.root, path)?
            }
            opened => opened?,
        };
        let folder = Arc::new(folder);
        self.last = Some((path.to_owned(), Arc::clone(&folder)));
        Ok(folder)
    }
}

/// Opens a folder by a relative path; links count as long as they stay below the root.
fn beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root, path, how) {
        // An older kernel, or a filter that does not know the call: then no link counts at all.
        Err(Errno::ENOSYS | Errno::EPERM) => step_by_step(root, path, flags | OFlag::O_NOFOLLOW),
        opened => opened,
    }
}

fn step_by_step(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut folder = root.try_clone().map_err(|_| Errno::EMFILE)?;
    for part in path.components() {
        let Component::Normal(name) = part else { return Err(Errno::EXDEV) };
        folder = openat(&folder, name, flags, Mode::empty())?;
    }
    Ok(folder)
}
