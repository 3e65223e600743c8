//! Keys in one file of mode 0600: the adapter of `gantry up`.

use crate::{Error, Result, Secrets};
use async_trait::async_trait;
use aws_lc_rs::{aead, hkdf, rand};
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use zeroize::{Zeroize, Zeroizing};

const MAGIC: [u8; 2] = *b"gk";
/// Magic, version of the key, nonce.
const HEADER: usize = 2 + 4 + aead::NONCE_LEN;
const DERIVATION: &[u8] = b"gantry keyring 1";

type Ring = BTreeMap<u32, Zeroizing<[u8; 32]>>;

/// The file as it is written.
#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    keys: BTreeMap<u32, String>,
}

/// AES-256-GCM under keys from a file. For each label a key of its own is derived, so that random nonces
/// of different places can never meet; the label is associated data besides.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    ring: Mutex<Ring>,
}

impl Keyring {
    /// Reads the file, or makes it with one fresh key.
    ///
    /// # Errors
    /// The file cannot be read or written, others than its owner may read it, or it is not a key ring.
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let ring =
            match read(&path) {
                Ok(ring) => ring,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let ring = Ring::from([(1, fresh()?)]);
                    // Another process may have been faster: what lies there first counts.
                    write(&path, &ring, Replace::No)
                        .or_else(|error| {
                            if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
                        })
                        .and_then(|()| read(&path))
                        .map_err(Error::Store)?
                }
                Err(error) => return Err(Error::Store(error)),
            };
        Ok(Self { path, ring: Mutex::new(ring) })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic cannot leave the map half changed: it is replaced as a whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a version; another process may have rotated, so the file is read again before giving up.
    fn key(&self, version: u32) -> Result<Zeroizing<[u8; 32]>> {
        if let Some(key) = self.ring().get(&version) {
            return Ok(key.clone());
        }
        let read = read(&self.path).map_err(Error::Store)?;
        let mut ring = self.ring();
        *ring = read;
        ring.get(&version).cloned().ok_or(Error::UnknownVersion(version))
    }

    fn newest_key(&self) -> (u32, Zeroizing<[u8; 32]>) {
        let ring = self.ring();
        let (version, key) = ring.last_key_value().expect("a ring is never empty: read() refuses it");
        (*version, key.clone())
    }
}

#[async_trait]
impl Secrets for Keyring {
    async fn encrypt(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let (version, key) = self.newest_key();
        let mut nonce = [0u8; aead::NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = Vec::with_capacity(HEADER + plain.len() + aead::MAX_TAG_LEN);
        sealed.extend_from_slice(&MAGIC);
        sealed.extend_from_slice(&version.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        let aad = associated(&sealed, label);
        let mut body = plain.to_vec();
        cipher(&key, label)?
            .seal_in_place_append_tag(
                aead::Nonce::assume_unique_for_key(nonce),
                aead::Aad::from(aad),
                &mut body,
            )
            .map_err(|_| Error::Refused)?;
        sealed.append(&mut body);
        Ok(sealed)
    }

    async fn decrypt(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let version = self.version_of(sealed)?;
        let key = self.key(version)?;
        let (header, body) = sealed.split_at(HEADER);
        let nonce = aead::Nonce::try_assume_unique_for_key(&header[6..]).map_err(|_| Error::Refused)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = cipher(&key, label)?
            .open_in_place(nonce, aead::Aad::from(associated(header, label)), &mut body)
            .map_err(|_| Error::Refused)?
            .len();
        body.truncate(length);
        Ok(body)
    }

    fn version_of(&self, sealed: &[u8]) -> Result<u32> {
        match sealed {
            [m0, m1, v0, v1, v2, v3, ..] if sealed.len() >= HEADER && [*m0, *m1] == MAGIC => {
                Ok(u32::from_be_bytes([*v0, *v1, *v2, *v3]))
            }
            _ => Err(Error::Refused),
        }
    }

    async fn newest(&self) -> Result<u32> {
        Ok(self.newest_key().0)
    }

    async fn rotate(&self) -> Result<u32> {
        let mut ring = self.ring();
        let mut next = read(&self.path).map_err(Error::Store)?;
        let version = next.last_key_value().map_or(1, |(version, _)| version + 1);
        next.insert(version, fresh()?);
        write(&self.path, &next, Replace::Yes).map_err(Error::Store)?;
        *ring = next;
        Ok(version)
    }

    async fn retire_below(&self, version: u32) -> Result<()> {
        let mut ring = self.ring();
        let mut next = read(&self.path).map_err(Error::Store)?;
        let newest = next.last_key_value().map_or(version, |(newest, _)| *newest);
        next.retain(|each, _| *each >= version.min(newest));
        write(&self.path, &next, Replace::Yes).map_err(Error::Store)?;
        *ring = next;
        Ok(())
    }
}

fn associated(header: &[u8], label: &str) -> Vec<u8> {
    [header, label.as_bytes()].concat()
}

fn cipher(key: &[u8; 32], label: &str) -> Result<aead::LessSafeKey> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVATION).extract(key);
    let info = [label.as_bytes()];
    let derived = prk.expand(&info, &aead::AES_256_GCM).map_err(|_| Error::Refused)?;
    Ok(aead::LessSafeKey::new(aead::UnboundKey::from(derived)))
}

fn random(into: &mut [u8]) -> Result<()> {
    rand::fill(into).map_err(|_| Error::Store(io::Error::other("the system gives no randomness")))
}

fn fresh() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0u8; 32]);
    random(&mut *key)?;
    Ok(key)
}

fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

fn read(path: &Path) -> io::Result<Ring> {
    let text = Zeroizing::new(fs::read(path)?);
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        return Err(invalid(path, "others may read the keys; set its mode to 0600"));
    }
    let file: File = serde_json::from_slice(&text).map_err(|_| invalid(path, "not a key ring"))?;
    if file.format != 1 {
        return Err(invalid(path, "a key ring of a newer format"));
    }
    let mut ring = Ring::new();
    for (version, key) in file.keys {
        let key = Zeroizing::new(key);
        let bytes = Zeroizing::new(B64.decode(&*key).map_err(|_| invalid(path, "a key is not base64"))?);
        let key: [u8; 32] =
            bytes.as_slice().try_into().map_err(|_| invalid(path, "a key has not 32 bytes"))?;
        ring.insert(version, Zeroizing::new(key));
    }
    if ring.is_empty() { Err(invalid(path, "the ring has no key")) } else { Ok(ring) }
}

#[derive(PartialEq)]
enum Replace {
    Yes,
    No,
}

/// Writes beside, syncs, then takes the name: a crash leaves the old ring or the new one.
fn write(path: &Path, ring: &Ring, replace: Replace) -> io::Result<()> {
    use io::Write;
    let mut file = File {
        format: 1,
        keys: ring.iter().map(|(version, key)| (*version, B64.encode(key.as_slice()))).collect(),
    };
    let text = serde_json::to_vec_pretty(&file).map(Zeroizing::new);
    file.keys.values_mut().for_each(Zeroize::zeroize);
    let text = text?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    out.write_all(&text)?;
    out.sync_all()?;
    if replace == Replace::Yes {
        fs::rename(&draft, path)?;
    } else {
        let linked = fs::hard_link(&draft, path);
        fs::remove_file(&draft)?;
        linked?;
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
