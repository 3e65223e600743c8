//! The data folder of `gantry up` (outside §7).

use anyhow::{Context, bail};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// Version of the folder's layout; an older one is migrated, a newer one refused.
const VERSION: u32 = 1;

/// Paths below one data folder, all of which exist.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The folder, absolute.
    pub data: PathBuf,
    /// A short private folder for sockets: a socket path has at most 107 bytes.
    pub run: PathBuf,
}

impl Layout {
    /// Makes what is missing.
    ///
    /// # Errors
    /// A folder cannot be made, or the data were written by a newer version.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        if let Ok(found) = fs::metadata(data)
            && !owned_by_us(&found)
        {
            use std::os::unix::fs::MetadataExt;
            bail!(
                "{} belongs to the user with id {} and this is {}; run as that user, or use another --data folder",
                data.display(),
                found.uid(),
                nix::unistd::geteuid()
            );
        }
        private(data)?;
        let data = data.canonicalize().with_context(|| format!("{} cannot be resolved", data.display()))?;
        let version = data.join("version");
        match fs::read_to_string(&version) {
            Ok(text) => {
                let found: u32 =
                    text.trim().parse().with_context(|| format!("{} is no version", version.display()))?;
                if found > VERSION {
                    bail!(
                        "{} was written by a newer Gantry (layout {found}, this one knows {VERSION}); upgrade Gantry, or use another folder",
                        data.display()
                    );
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::write(&version, format!("{VERSION}\n"))?
            }
            Err(error) => return Err(error).context("the data folder's version cannot be read"),
        }
        for name in ["blobs", "git", "keys", "journal", "tasks", "logs"] {
            private(&data.join(name))?;
        }
        let run = run_folder(&data)?;
        Ok(Self { data, run })
    }

    /// Socket that agents speak to.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// A path below the data folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }
}

pub(crate) fn private(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("{} cannot be made; Gantry must be able to write there", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} cannot be made private", path.display()))
}

/// The folder behind `DATA/run`: kept while the link points at one of ours, else made anew.
fn run_folder(data: &Path) -> anyhow::Result<PathBuf> {
    let link = data.join("run");
    if let Ok(target) = fs::read_link(&link)
        && fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir() && owned_by_us(&found))
    {
        return Ok(target);
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    let base = base.unwrap_or_else(|| PathBuf::from("/tmp"));
    let target = base.join(format!("gantry-{}", &ids::InstanceId::new().uuid().simple().to_string()[20..]));
    private(&target)?;
    let draft = data.join("run.new");
    let _ = fs::remove_file(&draft);
    symlink(&target, &draft)?;
    fs::rename(&draft, &link)?;
    Ok(target)
}

fn owned_by_us(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    found.uid() == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_folder_is_refused_and_a_long_path_gets_short_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("x".repeat(180));
        let layout = Layout::open(&data).unwrap();
        assert!(layout.agent_socket().as_os_str().len() < 107);
        assert_eq!(Layout::open(&data).unwrap().run, layout.run, "a second start keeps the folder");
        fs::write(data.join("version"), "99\n").unwrap();
        let error = Layout::open(&data).unwrap_err().to_string();
        assert!(error.contains("newer Gantry"), "{error}");
        fs::remove_dir_all(layout.run).unwrap();
    }
}
