//! Files and users of the machine.

use super::Identity;
use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Variables of the agent's own environment that steps see too; everything else is the server's business. By
/// the mark of its placement a sweep finds what a dead agent left.
const INHERITED: [&str; 14] = [
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GANTRY_PLACEMENT",
];
/// Under this name steps find the agent.
const PROGRAM: &str = "gantry-runner";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the machine gives to every command.
pub(super) fn environment() -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    all.insert("PATH".into(), std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()));
    all
}

/// Makes the folders of a task. Answer: where the agent is to lie among its programs.
pub(super) fn furnish(outside: &Path, owner: Option<Identity>) -> io::Result<PathBuf> {
    fs::set_permissions(outside, fs::Permissions::from_mode(0o755))?;
    for name in ["home", "data"] {
        let path = outside.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        give(&path, owner)?;
    }
    let bin = outside.join("bin");
    fs::create_dir_all(&bin)?;
    for name in crate::PROGRAM_NAMES {
        match symlink(PROGRAM, bin.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(bin.join(PROGRAM))
}

/// Whether a task's user can run the program as it is.
pub(super) fn may_be_shared(program: &Path, owner: Option<Identity>) -> bool {
    owner.is_none() || fs::metadata(program).is_ok_and(|program| program.mode() & 0o005 == 0o005)
}

/// Puts the agent there, where it cannot be bound. A link costs nothing; across file systems it cannot be.
pub(super) fn provide(program: &Path, place: &Path) -> io::Result<()> {
    // Never copied onto a link to itself, which would empty it.
    match fs::remove_file(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if fs::hard_link(program, place).is_err() {
        fs::copy(program, place)?;
    }
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
}

/// Writes a file for the task's user.
pub(super) fn write(path: &Path, text: &str, mode: u32, owner: Option<Identity>) -> io::Result<()> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        fs::create_dir_all(folder)?;
        give(folder, owner)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    give(path, owner)
}

/// Listens at a socket that the task's user alone may connect to. By way of its folder's descriptor: the name of a
/// socket has room for a hundred bytes, and data folders may lie deep.
pub(super) fn listen(path: &Path, owner: Option<Identity>) -> io::Result<UnixListener> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket needs a folder and a name"));
    };
    let folder = fs::File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let listener = UnixListener::bind(&short)?;
    fs::set_permissions(&short, fs::Permissions::from_mode(0o600))?;
    give(&short, owner)?;
    Ok(listener)
}

fn give(path: &Path, owner: Option<Identity>) -> io::Result<()> {
    match owner {
        Some(id) => chown(path, Some(id.uid), Some(id.gid)),
        None => Ok(()),
    }
}

/// Makes the folder, or takes over our own from before; never one of somebody else in a folder for all.
pub(super) fn make_place(place: &Path) -> io::Result<()> {
    match fs::create_dir(place) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(place)?;
            if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
                return Err(e);
            }
        }
        Err(e) => return Err(e),
    }
    // It also counts as used: what cleans up old temporary files would take the mount away from under a task.
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
}

/// Removes a tree, also where a tool (a module cache, say) took the right to write from its own folders.
pub(super) fn remove_all(root: &Path) {
    if fs::remove_dir_all(root).is_ok() {
        return;
    }
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        folders
            .extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    if let Err(e) = fs::remove_dir_all(root)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %root.display(), error = %e, "files of the task are left");
    }
}

/// The groups of a user, read from the files themselves: a static program cannot load the modules that would
/// ask a directory service.
pub(super) fn groups_of(id: Identity) -> Vec<u32> {
    let mut groups = vec![id.gid];
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id.uid)).then_some(name)
    });
    if let Some(name) = name {
        for line in fs::read_to_string("/etc/group").unwrap_or_default().lines() {
            let mut fields = line.split(':').skip(2);
            if let (Some(gid), Some(members)) = (fields.next().and_then(|g| g.parse().ok()), fields.next())
                && members.split(',').any(|m| m == name)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
    }
    groups
}

/// Read from the file itself, for the same reason.
pub(super) fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| uid.to_string())
}
