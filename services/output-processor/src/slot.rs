//! Places for journals in one folder. Processes that share it take one each: the folder itself or one numbered below it.
//! The kernel gives a place up when its process ends, however that ends, and then any other may take it.

use ids::InstanceId;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Processes of one folder. More would be a mistake of whoever started them.
const MOST: usize = 64;

/// A place that this process holds.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) folder: PathBuf,
    /// Of the journal; the same for whoever holds the place.
    pub(crate) id: Uuid,
    lock: File,
}

impl Slot {
    /// Takes the first place that is free.
    pub(crate) fn take(root: &Path) -> io::Result<Self> {
        for number in 1..=MOST {
            if let Some(slot) = Self::try_take(&folder(root, number))? {
                return Ok(slot);
            }
        }
        Err(io::Error::other(format!("{MOST} processes have a journal in {} already", root.display())))
    }

    /// Takes the places whose process ended and left something.
    pub(crate) fn orphans(root: &Path, mine: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for number in 1..=MOST {
            let folder = folder(root, number);
            // Places are taken in order: behind one that never was there is none.
            if !folder.join("lock").exists() {
                if number == 1 {
                    continue;
                }
                break;
            }
            if folder != mine
                && !crate::journal::numbers(&folder)?.is_empty()
                && let Some(slot) = Self::try_take(&folder)?
            {
                found.push(slot);
            }
        }
        Ok(found)
    }

    fn try_take(folder: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        let name = folder.join("id");
        let known = fs::read_to_string(&name).ok().and_then(|text| text.trim().parse().ok());
        let id = match known {
            Some(id) => id,
            None => {
                let id = InstanceId::new().uuid();
                let draft = folder.join("id.new");
                fs::write(&draft, id.to_string())?;
                File::open(&draft)?.sync_all()?;
                fs::rename(draft, name)?;
                File::open(folder)?.sync_all()?;
                id
            }
        };
        Ok(Some(Self { folder: folder.to_owned(), id, lock }))
    }

    /// Gives the place up before the process ends. Nothing is written to it any more.
    pub(crate) fn leave(&self) -> io::Result<()> {
        self.lock.unlock()
    }
}

fn folder(root: &Path, number: usize) -> PathBuf {
    if number == 1 { root.to_owned() } else { root.join(number.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_held_by_one_and_kept_by_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let first = Slot::take(root.path()).unwrap();
        let second = Slot::take(root.path()).unwrap();
        assert_ne!(first.folder, second.folder);
        assert!(Slot::orphans(root.path(), &second.folder).unwrap().is_empty(), "it is held");
        fs::write(first.folder.join("0000000000000001.journal"), "x").unwrap();
        let id = first.id;
        drop(first);
        let orphans = Slot::orphans(root.path(), &second.folder).unwrap();
        assert_eq!(orphans.iter().map(|slot| slot.id).collect::<Vec<_>>(), [id]);
        drop(orphans);
        assert_eq!(Slot::take(root.path()).unwrap().id, id);
    }
}
