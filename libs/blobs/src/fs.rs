//! The file system adapter.
//!
//! `objects/ab/cdef…` is named by the SHA-256 of the key and holds the bytes, then the key, then a trailer of fixed
//! size. Bytes come first so that a range is a plain seek; key and digest travel in the same file so that one
//! rename publishes all of it.

use crate::{Blobs, Body, Digest, Error, Get, Key, Meta, Method, Put, Result, Signed, digest};
use async_trait::async_trait;
use aws_lc_rs::{
    digest::{Context, SHA256},
    hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryFutureExt};
use std::{
    collections::HashSet,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::io::AsyncWriteExt;

pub(crate) const MAGIC: &[u8; 8] = b"GANTRYB1";
/// Size of body, SHA-256, length of key, magic.
pub(crate) const TRAILER: usize = 8 + 32 + 4 + 8;
/// Numbers temporary files: their folder is swept at each start, so that the process's own numbers are enough.
static DRAFTS: AtomicU64 = AtomicU64::new(0);
const PIECE: usize = 512 << 10;
/// Pieces that are read at the same time.
const AHEAD: usize = 2;

/// Blobs as files in a folder that one process owns. Cheap to clone.
#[derive(Clone)]
pub struct FsBlobs(Arc<Inner>);

struct Inner {
    objects: PathBuf,
    temporary: PathBuf,
    /// Of URLs: the first one signs, all are believed.
    keys: Vec<hmac::Key>,
    /// Folders of objects that are known to be on disk.
    folders: Mutex<HashSet<PathBuf>>,
}

impl std::fmt::Debug for FsBlobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsBlobs").field("objects", &self.0.objects).finish_non_exhaustive()
    }
}

impl FsBlobs {
    /// Opens or makes the folder, and sweeps what a crash left half written. The first of the signing keys
    /// signs URLs; those that another one signed are good too.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub async fn open(folder: &Path, signing_keys: &[impl AsRef<[u8]>]) -> Result<Self> {
        let (objects, temporary) = (folder.join("objects"), folder.join("tmp"));
        tokio::fs::create_dir_all(&objects).await?;
        tokio::fs::create_dir_all(&temporary).await?;
        let mut leftovers = tokio::fs::read_dir(&temporary).await?;
        while let Some(leftover) = leftovers.next_entry().await? {
            tracing::info!(file = %leftover.path().display(), "removing an unfinished blob");
            tokio::fs::remove_file(leftover.path()).await?;
        }
        let keys = signing_keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())).collect();
        Ok(Self(Arc::new(Inner { objects, temporary, keys, folders: Mutex::default() })))
    }

    /// The folder of a running instance, to be read only: nothing is swept, and no URL can be signed.
    pub fn open_for_audit(folder: &Path) -> Self {
        Self(Arc::new(Inner {
            objects: folder.join("objects"),
            temporary: folder.join("tmp"),
            keys: Vec::new(),
            folders: Mutex::default(),
        }))
    }

    pub(crate) fn objects(&self) -> &Path {
        &self.0.objects
    }

    fn place(&self, key: &Key) -> PathBuf {
        let name = hex::encode(digest(key.as_str().as_bytes()));
        self.0.objects.join(&name[..2]).join(&name[2..])
    }

    fn mac_input(key: &Key, method: Method, expires: i64) -> String {
        match method {
            Method::Get => format!("GET\n{key}\n\n\n{expires}"),
            Method::Put { size, sha256 } => format!("PUT\n{key}\n{size}\n{}\n{expires}", hex::encode(sha256)),
        }
    }

    fn download_input(key: &Key, name: &str, expires: i64) -> String {
        format!("GET\n{key}\n{name}\n\n{expires}")
    }

    /// Whether `signature` allows to save it under this name (base64) at this moment.
    pub(crate) fn allows_download(&self, key: &Key, name: &str, expires: i64, signature: &str) -> bool {
        let Ok(mac) = B64.decode(signature) else { return false };
        let input = Self::download_input(key, name, expires);
        self.is_signed(&input, &mac) && Utc::now().timestamp() < expires
    }

    /// Without a key there is none, and nobody takes the URL.
    fn signature(&self, input: &str) -> String {
        let mac = self.0.keys.first().map(|key| hmac::sign(key, input.as_bytes()));
        mac.map(|mac| B64.encode(mac.as_ref())).unwrap_or_default()
    }

    fn is_signed(&self, input: &str, mac: &[u8]) -> bool {
        self.0.keys.iter().any(|key| hmac::verify(key, input.as_bytes(), mac).is_ok())
    }

    /// Whether `signature` allows this at this moment.
    pub(crate) fn allows(&self, key: &Key, method: Method, expires: i64, signature: &str) -> bool {
        let Ok(mac) = B64.decode(signature) else { return false };
        let input = Self::mac_input(key, method, expires);
        self.is_signed(&input, &mac) && Utc::now().timestamp() < expires
    }

    pub(crate) async fn open_blob(&self, key: &Key) -> Result<Option<(File, Meta)>> {
        let (place, key) = (self.place(key), key.clone());
        // One way to the threads that may block, instead of one for each system call.
        blocking(move || open_place(&place, &key)).await
    }

    /// Writes body, key and trailer to a temporary file, on disk when it returns.
    async fn write(&self, path: &Path, key: &Key, mut body: Body, announced: Announced) -> Result<Meta> {
        let mut file = tokio::fs::File::create_new(path).await?;
        let (mut hasher, mut size) = (Context::new(&SHA256), 0u64);
        let mismatch = |what, announced: String, actual: String| {
            Err(Error::Mismatch { key: key.clone(), what, announced, actual })
        };
        while let Some(piece) = body.next().await {
            let piece = piece?;
            size += piece.len() as u64;
            if let Some(limit) = announced.size.filter(|&limit| size > limit) {
                return mismatch("size", limit.to_string(), format!("more than {limit}"));
            }
            hasher.update(&piece);
            file.write_all(&piece).await?;
        }
        let mut sha256 = Digest::default();
        sha256.copy_from_slice(hasher.finish().as_ref());
        if let Some(expected) = announced.size.filter(|&expected| expected != size) {
            return mismatch("size", expected.to_string(), size.to_string());
        }
        if sha256 != announced.sha256 {
            return mismatch("digest", hex::encode(announced.sha256), hex::encode(sha256));
        }
        let mut tail = Vec::with_capacity(key.as_str().len() + TRAILER);
        tail.extend_from_slice(key.as_str().as_bytes());
        tail.extend_from_slice(&size.to_le_bytes());
        tail.extend_from_slice(&sha256);
        tail.extend_from_slice(&u32::try_from(key.as_str().len()).unwrap_or_default().to_le_bytes());
        tail.extend_from_slice(MAGIC);
        file.write_all(&tail).await?;
        file.flush().await?;
        file.sync_all().await?;
        Ok(Meta { size, sha256 })
    }

    pub(crate) async fn store(&self, key: &Key, body: Body, announced: Announced) -> Result<Put> {
        if let Some((_, meta)) = self.open_blob(key).await? {
            return Ok(Put::AlreadyExists(meta));
        }
        let draft = self.0.temporary.join(DRAFTS.fetch_add(1, Ordering::Relaxed).to_string());
        let written = self.write(&draft, key, body, announced).await;
        let stored = match written {
            Ok(meta) => self.publish(&draft, key, meta).await,
            Err(error) => Err(error),
        };
        // After a link the draft is a second name, after an error it is waste; a crash leaves it to the next start.
        match tokio::fs::remove_file(&draft).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, file = %draft.display(), "cannot remove a temporary file"),
        }
        stored
    }

    /// Gives the draft its name unless another has it. A link, unlike a rename, never replaces.
    async fn publish(&self, draft: &Path, key: &Key, meta: Meta) -> Result<Put> {
        let place = self.place(key);
        let folder = place.parent().unwrap_or(&self.0.objects).to_owned();
        self.make_folder(&folder).await?;
        failpoints::failpoint("blobs.publish.before").await.map_err(io::Error::from)?;
        match tokio::fs::hard_link(draft, &place).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (_, meta) = self.open_blob(key).await?.ok_or_else(|| Error::Missing(key.clone()))?;
                return Ok(Put::AlreadyExists(meta));
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
            {
                tokio::fs::rename(draft, &place).await?;
            }
            Err(error) => return Err(error.into()),
        }
        failpoints::failpoint("blobs.publish.after").await.map_err(io::Error::from)?;
        blocking(move || Ok(File::open(&folder)?.sync_all()?)).await?;
        Ok(Put::Stored(meta))
    }

    /// Makes a folder of objects, on disk when it returns. There are few: this process does so once for each.
    async fn make_folder(&self, folder: &Path) -> Result<()> {
        let folders = || self.0.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if folders().contains(folder) {
            return Ok(());
        }
        let (made, above) = (folder.to_owned(), self.0.objects.clone());
        blocking(move || {
            std::fs::create_dir_all(&made)?;
            Ok(File::open(above)?.sync_all()?)
        })
        .await?;
        folders().insert(folder.to_owned());
        Ok(())
    }

    /// The bytes of an opened blob, read ahead of who takes them.
    pub(crate) fn read(key: &Key, (file, meta): (File, Meta), range: Option<Range<u64>>) -> Result<Get> {
        let range = match range {
            None => 0..meta.size,
            Some(range) if range.start <= meta.size && range.start <= range.end => {
                range.start..range.end.min(meta.size)
            }
            Some(_) => return Err(Error::Range { key: key.clone(), size: meta.size }),
        };
        let (file, end) = (Arc::new(file), range.end);
        let pieces = range.clone().step_by(PIECE).map(move |at| {
            let file = Arc::clone(&file);
            blocking(move || {
                let mut piece = vec![0; PIECE.min(usize::try_from(end - at).unwrap_or(PIECE))];
                file.read_exact_at(&mut piece, at)?;
                Ok(Bytes::from(piece))
            })
            .map_err(io::Error::other)
        });
        Ok(Get { meta, range, body: futures::stream::iter(pieces).buffered(AHEAD).boxed() })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A blob's file and what its trailer says.
fn open_place(place: &Path, key: &Key) -> Result<Option<(File, Meta)>> {
    let file = match File::open(place) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let damaged = || Error::Damaged(key.clone());
    let trailer_at = file.metadata()?.len().checked_sub(TRAILER as u64).ok_or_else(damaged)?;
    let mut trailer = [0u8; TRAILER];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let (size, rest) = trailer.split_at(8);
    let (sha256, rest) = rest.split_at(32);
    let (key_length, magic) = rest.split_at(4);
    let size = u64::from_le_bytes(size.try_into().map_err(|_| damaged())?);
    let key_length = u32::from_le_bytes(key_length.try_into().map_err(|_| damaged())?);
    let sha256: Digest = sha256.try_into().map_err(|_| damaged())?;
    if magic != MAGIC || size.checked_add(u64::from(key_length)) != Some(trailer_at) {
        return Err(damaged());
    }
    Ok(Some((file, Meta { size, sha256 })))
}

/// What the writer said before it wrote.
pub(crate) struct Announced {
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Digest,
}

#[async_trait]
impl Blobs for FsBlobs {
    async fn put(&self, key: &Key, body: Body, sha256: Digest) -> Result<Put> {
        self.store(key, body, Announced { size: None, sha256 }).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Get> {
        let opened = self.open_blob(key).await?.ok_or_else(|| Error::Missing(key.clone()))?;
        Self::read(key, opened, range)
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        Ok(self.open_blob(key).await?.map(|(_, meta)| meta))
    }

    async fn delete(&self, key: &Key) -> Result<bool> {
        match tokio::fs::remove_file(self.place(key)).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn sign_download(&self, key: &Key, expires: DateTime<Utc>, name: &str) -> String {
        let expires = expires.timestamp();
        let name = B64.encode(name);
        let signature = self.signature(&Self::download_input(key, &name, expires));
        format!("/blobs/{key}?name={name}&expires={expires}&signature={signature}")
    }

    fn sign(&self, key: &Key, method: Method, expires: DateTime<Utc>) -> Signed {
        let expires = expires.timestamp();
        let signature = self.signature(&Self::mac_input(key, method, expires));
        let url = match method {
            Method::Get => format!("/blobs/{key}?expires={expires}&signature={signature}"),
            Method::Put { size, sha256 } => {
                let sha256 = hex::encode(sha256);
                format!("/blobs/{key}?size={size}&sha256={sha256}&expires={expires}&signature={signature}")
            }
        };
        Signed { url, headers: Vec::new() }
    }
}
