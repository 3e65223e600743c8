//! Reads every blob of a folder and compares its bytes with the digest that it was stored under.

use crate::{
    FsBlobs,
    fs::{MAGIC, TRAILER},
};
use aws_lc_rs::digest::{Context, SHA256};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// A blob whose bytes are not what was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it lies.
    pub place: String,
    /// Its key, if that can still be read.
    pub key: Option<String>,
}

impl FsBlobs {
    /// Every damaged blob, and how many were read.
    ///
    /// # Errors
    /// A folder or file cannot be read at all.
    pub async fn audit(&self) -> io::Result<(u64, Vec<Damage>)> {
        let objects = self.objects().to_owned();
        tokio::task::spawn_blocking(move || walk(&objects)).await.map_err(io::Error::other)?
    }
}

fn walk(objects: &Path) -> io::Result<(u64, Vec<Damage>)> {
    let (mut read, mut damaged) = (0, Vec::new());
    for folder in std::fs::read_dir(objects)? {
        for entry in std::fs::read_dir(folder?.path())? {
            let file = entry?.path();
            read += 1;
            let (key, whole) = check(&file)?;
            if !whole {
                damaged.push(Damage { place: file.display().to_string(), key });
            }
        }
    }
    Ok((read, damaged))
}

/// The key in the file's tail, and whether the bytes have the digest that stands there.
fn check(path: &Path) -> io::Result<(Option<String>, bool)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(trailer_at) = length.checked_sub(TRAILER as u64) else { return Ok((None, false)) };
    let mut trailer = [0u8; TRAILER];
    file.seek(SeekFrom::Start(trailer_at))?;
    file.read_exact(&mut trailer)?;
    let (size, rest) = trailer.split_at(8);
    let (sha256, rest) = rest.split_at(32);
    let (key_length, magic) = rest.split_at(4);
    let size = size.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let key_length = key_length.try_into().map_or(u32::MAX, u32::from_le_bytes);
    if magic != MAGIC || size.checked_add(u64::from(key_length)) != Some(trailer_at) {
        return Ok((None, false));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Context::new(&SHA256);
    let mut body = (&mut file).take(size);
    let mut piece = vec![0u8; 128 * 1024];
    loop {
        match body.read(&mut piece)? {
            0 => break,
            read => hasher.update(&piece[..read]),
        }
    }
    let mut key = Vec::new();
    file.take(u64::from(key_length)).read_to_end(&mut key)?;
    Ok((String::from_utf8(key).ok(), hasher.finish().as_ref() == sha256))
}
