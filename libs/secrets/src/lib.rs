//! The port behind which keys live: encrypt, decrypt, rotate. Callers hold ciphertext, never a key.
//!
//! Every value is bound to a *label* that names its place (for example organisation, context and name of a
//! variable). The label is associated data: a ciphertext that is moved to another place does not open.
//!
//! Adapters: [`Keyring`], a file of mode 0600 on one machine. [`contract`] is the suite that every adapter
//! must pass.

pub mod contract;
mod keyring;

pub use keyring::Keyring;

use async_trait::async_trait;
pub use zeroize::Zeroizing;

/// Why a value could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Altered, cut off, or sealed under another label. Which of these cannot be told apart, on purpose.
    #[error("the ciphertext does not open under this label")]
    Refused,
    /// The version of the key is not on the ring: retired, or from another installation.
    #[error("version {0} of the key is not available")]
    UnknownVersion(u32),
    /// The store of keys failed.
    #[error("the key store failed")]
    Store(#[source] std::io::Error),
}

/// Result of this port.
pub type Result<T> = std::result::Result<T, Error>;

/// Encrypts and decrypts under versioned keys.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// Seals `plain` under the newest key, bound to `label`.
    async fn encrypt(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>>;

    /// Opens what [`Secrets::encrypt`] made under the same label. The value is wiped when dropped.
    async fn decrypt(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>>;

    /// Opens several, each given with its label; the values come in that order. One that does not open fails them all.
    async fn decrypt_all(&self, sealed: &[(&str, &[u8])]) -> Result<Vec<Zeroizing<Vec<u8>>>> {
        let mut values = Vec::with_capacity(sealed.len());
        for (label, sealed) in sealed {
            values.push(self.decrypt(label, sealed).await?);
        }
        Ok(values)
    }

    /// Seals the same value anew under the newest key.
    async fn rewrap(&self, label: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let plain = self.decrypt(label, sealed).await?;
        self.encrypt(label, &plain).await
    }

    /// The version of the key that a ciphertext was sealed under.
    fn version_of(&self, sealed: &[u8]) -> Result<u32>;

    /// The version that [`Secrets::encrypt`] uses now.
    async fn newest(&self) -> Result<u32>;

    /// Adds a key and returns its version. Older ciphertexts go on to open.
    async fn rotate(&self) -> Result<u32>;

    /// Destroys every key below `version`, once everything is rewrapped. The newest key always stays.
    async fn retire_below(&self, version: u32) -> Result<()>;
}

/// A label from parts. Each part carries its length, so that no two lists of parts give the same label.
pub fn label(parts: &[&str]) -> String {
    parts.iter().map(|part| format!("{}:{part}", part.len())).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    #[test]
    fn different_parts_never_give_one_label() {
        assert_ne!(super::label(&["a|1:b", "c"]), super::label(&["a", "b|1:c"]));
        assert_ne!(super::label(&["ab", ""]), super::label(&["a", "b"]));
    }
}
