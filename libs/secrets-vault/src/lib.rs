//! Keys in Vault's transit engine: they never leave it, and this process holds none.
//!
//! One key of the engine, derived: the label is the context of the derivation, so that a ciphertext which lies in
//! another place does not open (security §4.1). Two logins have a policy each: `write` may seal and rewrap, `deliver`
//! may open; a process that is given no second login cannot open anything, whatever is done to it. While Vault is
//! sealed or away every call fails within seconds, and the next one after it came back succeeds.

mod envelope;
mod http;
mod login;
mod transit;

pub use login::AppRole;

use async_trait::async_trait;
use login::Login;
use secrets::{Error, Result, Secrets, Zeroizing};
use std::{fmt, io};
use tokio::sync::OnceCell;
use transit::{Key, Transit};

/// What a process that may seal needs; also to rewrap.
pub const WRITE_POLICY: &str = include_str!("../policies/write.hcl");
/// What a process that delivers needs.
pub const DELIVER_POLICY: &str = include_str!("../policies/deliver.hcl");
/// What whoever rotates and retires keys needs besides.
pub const ROTATE_POLICY: &str = include_str!("../policies/rotate.hcl");

/// Values that are opened by one request: of the largest that there may be, some megabytes.
const BATCH: usize = 100;

/// Where Vault is, and as whom it is entered.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// For example `https://vault.example.com:8200`.
    pub address: String,
    /// Where the transit engine is mounted.
    pub mount: String,
    /// Name of the key. It must be derived.
    pub key: String,
    /// Seals.
    pub write: AppRole,
    /// Opens; `None`: this process opens nothing.
    pub deliver: Option<AppRole>,
}

/// The adapter.
pub struct VaultSecrets {
    transit: Transit,
    write: Login,
    deliver: Option<Login>,
    checked: OnceCell<()>,
}

impl fmt::Debug for VaultSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultSecrets").field("transit", &self.transit).finish_non_exhaustive()
    }
}

impl VaultSecrets {
    /// An adapter for this Vault. Nothing is sent before it is used.
    ///
    /// # Errors
    /// The address cannot be read, or there can be no HTTP client.
    pub fn new(config: Config) -> io::Result<Self> {
        Ok(Self {
            transit: Transit::new(&config)?,
            write: Login::new(config.write),
            deliver: config.deliver.map(Login::new),
            checked: OnceCell::new(),
        })
    }

    /// The login that opens.
    fn deliver(&self) -> Result<&Login> {
        let none = "this process has no login that may open secrets: [secrets] deliver_role_id";
        self.deliver
            .as_ref()
            .ok_or_else(|| Error::Store(io::Error::new(io::ErrorKind::PermissionDenied, none)))
    }

    /// Refuses a key under which labels would mean nothing: Vault ignores the context where there is no derivation.
    async fn checked(&self, login: &Login) -> Result<()> {
        let check = || async {
            let Key { derived, .. } = self.transit.key(login).await?;
            if derived {
                return Ok(());
            }
            let text = format!(
                "the key {} in Vault is not derived: make one with `vault write -f {} derived=true`",
                self.transit.name(),
                self.transit.path("keys")
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        self.checked.get_or_try_init(check).await.map_err(Error::Store)?;
        Ok(())
    }

    /// Why Vault did not open a ciphertext of this version.
    async fn refused(&self, login: &Login, version: u32) -> Error {
        match self.transit.key(login).await {
            Ok(key) if key.has(version) => Error::Refused,
            Ok(_) => Error::UnknownVersion(version),
            Err(error) => Error::Store(error),
        }
    }
}

#[async_trait]
impl Secrets for VaultSecrets {
    async fn encrypt(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>> {
        self.checked(&self.write).await?;
        let sealed = self.transit.encrypt(&self.write, label, plain).await.map_err(Error::Store)?;
        envelope::pack(&sealed)
    }

    async fn decrypt(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let (version, login) = (envelope::version(sealed)?, self.deliver()?);
        self.checked(login).await?;
        match self.transit.decrypt(login, label, &envelope::unpack(sealed)?).await.map_err(Error::Store)? {
            Some(plain) => Ok(plain),
            None => Err(self.refused(login, version).await),
        }
    }

    /// One request for as many as a job has.
    async fn decrypt_all(&self, sealed: &[(&str, &[u8])]) -> Result<Vec<Zeroizing<Vec<u8>>>> {
        let mut all = Vec::with_capacity(sealed.len());
        let login = self.deliver()?;
        self.checked(login).await?;
        for batch in sealed.chunks(BATCH) {
            let packed: Vec<(&str, String)> = batch
                .iter()
                .map(|(label, sealed)| Ok((*label, envelope::unpack(sealed)?)))
                .collect::<Result<_>>()?;
            match self.transit.decrypt_all(login, &packed).await.map_err(Error::Store)? {
                Some(values) => all.extend(values),
                // One by one it is known which, and why.
                None => {
                    for (label, sealed) in batch {
                        all.push(self.decrypt(label, sealed).await?);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Vault does it: nobody here sees the value, and no login that opens is needed.
    async fn rewrap(&self, label: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let version = envelope::version(sealed)?;
        self.checked(&self.write).await?;
        let old = envelope::unpack(sealed)?;
        match self.transit.rewrap(&self.write, label, &old).await.map_err(Error::Store)? {
            Some(new) => envelope::pack(&new),
            None => Err(self.refused(&self.write, version).await),
        }
    }

    fn version_of(&self, sealed: &[u8]) -> Result<u32> {
        envelope::version(sealed)
    }

    async fn newest(&self) -> Result<u32> {
        Ok(self.transit.key(&self.write).await.map_err(Error::Store)?.latest_version)
    }

    async fn rotate(&self) -> Result<u32> {
        self.transit.rotate(&self.write).await.map_err(Error::Store)?;
        self.newest().await
    }

    async fn retire_below(&self, version: u32) -> Result<()> {
        self.transit.retire_below(&self.write, version).await.map_err(Error::Store)
    }
}
