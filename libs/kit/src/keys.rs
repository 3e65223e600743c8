//! The installation's signing keys and the short-lived tokens that services hand to agents.
//!
//! A token is `base64url(JSON claims) "." base64url(MAC)`; the MAC is HMAC-SHA-256 under a key derived for
//! one purpose, so that a token of one kind never passes for another. The newest key signs, and what an older one signed is
//! believed as long as that one is there.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use ids::{JobId, TaskId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One-time token with which an agent claims its task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementClaims {
    /// Which task.
    pub task_id: TaskId,
    /// Epoch of the placement.
    pub epoch: i64,
}

/// What an agent shows to every receiver (reliability §7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceClaims {
    /// Which task.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// Epoch of the lease.
    pub epoch: i64,
    /// Unix milliseconds, no later than the lease's deadline.
    pub expires_at: i64,
    /// Public half of the task's X25519 key as its agent claimed with it, base64: secrets are sealed to this
    /// key and no other, so that a fence token alone does not open them. The dispatcher fills it at claim and
    /// keeps it at each renewal; `None`: no secrets are delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// W3C traceparent of the task: what its agent reports is told of there. In the signed part, so that an agent
    /// cannot write into the traces of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// What opens one repository for reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceClaims {
    /// Slug of the project.
    pub project_slug: String,
    /// Unix milliseconds.
    pub expires_at: i64,
}

/// Why a key file that somebody named cannot be used. Says nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It is missing, or we may not read it.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{} holds {bytes} bytes and no key: a key is 32 random bytes, or these as 64 hexadecimal digits (openssl rand -hex 32), \
         each key on a line of its own",
        path.display()
    )]
    NoKey {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

/// The key ring of one installation; cheap to clone.
#[derive(Clone)]
pub struct Keys(Arc<Ring>);

/// Newest first; never empty.
type Ring = Vec<[u8; 32]>;

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Keys from 32 secret bytes.
    pub fn from_bytes(key: [u8; 32]) -> Self {
        Self(Arc::new(vec![key]))
    }

    /// Reads the key file, or makes it (mode 0600) with fresh random bytes.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Unreadable { path: path.to_owned(), source };
        if !path.try_exists().map_err(failed)? {
            create(path).map_err(failed)?;
        }
        // Also what this process made: another may have been faster, and what lies there first counts.
        Self::load(path)
    }

    /// Reads a key file that must be there: 32 bytes, or lines of 64 hexadecimal digits, the newest key first.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let found =
            fs::read(path).map_err(|source| KeyFileError::Unreadable { path: path.to_owned(), source })?;
        // Bytes first: a key may happen to end with what looks like the end of a line.
        let ring = match <[u8; 32]>::try_from(found.as_slice()) {
            Ok(key) => Some(vec![key]),
            Err(_) => lines(&found),
        };
        ring.map(|ring| Self(Arc::new(ring)))
            .ok_or_else(|| KeyFileError::NoKey { path: path.to_owned(), bytes: found.len() })
    }

    /// The keys of one purpose, the newest first, for parts that sign by themselves.
    pub fn of(&self, purpose: &str) -> Vec<Vec<u8>> {
        self.0.iter().map(|key| mac(&derived(key, purpose), b"")).collect()
    }

    /// MAC of `data` for one purpose.
    pub fn sign(&self, purpose: &str, data: &[u8]) -> Vec<u8> {
        mac(&derived(&self.0[0], purpose), data)
    }

    /// Whether `mac` is the MAC of `data` for this purpose; in constant time.
    pub fn verify(&self, purpose: &str, data: &[u8], mac: &[u8]) -> bool {
        self.0.iter().any(|key| hmac::verify(&derived(key, purpose), data, mac).is_ok())
    }

    /// A token that carries `claims`.
    ///
    /// # Panics
    /// Never for plain data.
    pub fn seal_claims(&self, purpose: &str, claims: &impl Serialize) -> String {
        let body = serde_json::to_vec(claims).expect("claims are plain data");
        let mac = self.sign(purpose, &body);
        format!("{}.{}", B64.encode(&body), B64.encode(mac))
    }

    /// The claims of a token whose MAC is right. Expiry is the caller's to check.
    pub fn open_claims<T: DeserializeOwned>(&self, purpose: &str, token: &str) -> Option<T> {
        let (body, mac) = token.split_once('.')?;
        let (body, mac) = (B64.decode(body).ok()?, B64.decode(mac).ok()?);
        self.verify(purpose, &body, &mac).then(|| serde_json::from_slice(&body).ok())?
    }
}

fn derived(key: &[u8; 32], purpose: &str) -> hmac::Key {
    let root = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::Key::new(hmac::HMAC_SHA256, &mac(&root, purpose.as_bytes()))
}

fn mac(key: &hmac::Key, data: &[u8]) -> Vec<u8> {
    hmac::sign(key, data).as_ref().to_vec()
}

/// Keys as digits, each on a line of its own.
fn lines(text: &[u8]) -> Option<Ring> {
    let ring: Option<Ring> = text
        .trim_ascii()
        .split(|byte| *byte == b'\n')
        .map(|line| {
            let mut key = [0; 32];
            hex::decode_to_slice(line.trim_ascii(), &mut key).ok().map(|()| key)
        })
        .collect();
    ring.filter(|ring| !ring.is_empty())
}

/// Puts fresh random bytes at `path`, complete or not at all, unless something lies there already.
fn create(path: &Path) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut key = [0u8; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
    let draft = path.with_extension(format!("{}.new", ids::InstanceId::new()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(&key).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&draft)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_purpose_only() {
        let keys = Keys::from_bytes([7; 32]);
        let claims = PlacementClaims { task_id: TaskId::new(), epoch: 3 };
        let token = keys.seal_claims("placement", &claims);
        assert_eq!(keys.open_claims::<PlacementClaims>("placement", &token), Some(claims));
        assert_eq!(keys.open_claims::<PlacementClaims>("fence", &token), None);
        let mut altered = token.clone();
        altered.replace_range(0..1, if token.starts_with('A') { "B" } else { "A" });
        assert_eq!(keys.open_claims::<PlacementClaims>("placement", &altered), None);
    }

    #[test]
    fn processes_that_start_together_have_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing");
        let macs: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| Keys::load_or_create(&path).unwrap().sign("test", b"x")))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(macs.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_that_is_named_is_bytes_or_digits_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing");
        let said = |path: &Path| Keys::load(path).unwrap_err().to_string();
        assert!(said(&path).contains("signing cannot be read"), "{}", said(&path));
        assert!(!path.exists(), "none is made");
        fs::write(&path, [7; 32]).unwrap();
        let mac = Keys::load(&path).unwrap().sign("test", b"x");
        assert_eq!(mac, Keys::from_bytes([7; 32]).sign("test", b"x"));
        fs::write(&path, format!("{}\n", "07".repeat(32))).unwrap();
        assert_eq!(Keys::load(&path).unwrap().sign("test", b"x"), mac);
        for wrong in
            ["", "0707", "a secret that somebody mistook for a key!", &format!("{}\n07", "07".repeat(32))]
        {
            fs::write(&path, wrong).unwrap();
            let said = said(&path);
            assert!(said.contains(&format!("{} bytes", wrong.len())), "{said}");
            assert!(wrong.is_empty() || !said.contains(wrong), "{said}");
        }
    }

    #[test]
    fn an_older_key_is_believed_until_it_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing");
        let (old, new) = ("07".repeat(32), "08".repeat(32));
        let with = |text: String| {
            fs::write(&path, text).unwrap();
            Keys::load(&path).unwrap()
        };
        let claims = PlacementClaims { task_id: TaskId::new(), epoch: 1 };
        let opens =
            |keys: &Keys, token: &str| keys.open_claims::<PlacementClaims>("placement", token).is_some();
        // First everybody believes the new one, then it signs, then the old one goes.
        let (before, both, after, alone) = (
            with(format!("{old}\n")),
            with(format!("{old}\n{new}\n")),
            with(format!("{new}\r\n{old}\n")),
            with(new.clone()),
        );
        for (signs, believes) in
            [(&before, &both), (&both, &before), (&both, &after), (&after, &both), (&after, &alone)]
        {
            assert!(opens(believes, &signs.seal_claims("placement", &claims)));
        }
        assert!(!opens(&alone, &both.seal_claims("placement", &claims)));
        assert_eq!(after.of("x"), [with(new).of("x"), with(old).of("x")].concat());
    }
}
