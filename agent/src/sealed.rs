//! The task's own key, to which its secrets are sealed (security §4.3).

use agent_api::{SealedSecrets, Secrets};
use anyhow::{Context, anyhow};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    hkdf::{HKDF_SHA256, Salt},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ids::TaskId;
use std::{fs::File, io::Read};
use zeroize::Zeroizing;

const INFO: &[u8] = b"gantry task secrets";

/// Made anew for each task, kept in memory only.
pub(crate) struct TaskKey(PrivateKey);

impl TaskKey {
    /// From the kernel's random numbers: the library's own generator takes 30 ms to gather entropy before its
    /// first number, on the way of every task, and the agent needs one number. Any 32 bytes are a key.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut seed = Zeroizing::new([0u8; 32]);
        File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(seed.as_mut()))
            .context("no random numbers")?;
        PrivateKey::from_private_key(&X25519, seed.as_ref())
            .map(Self)
            .map_err(|_| anyhow!("no key could be made"))
    }

    pub(crate) fn public(&self) -> anyhow::Result<String> {
        let key = self.0.compute_public_key().map_err(|_| anyhow!("the key has no public half"))?;
        Ok(STANDARD.encode(key.as_ref()))
    }

    pub(crate) fn open(&self, task: TaskId, sealed: &SealedSecrets) -> anyhow::Result<Secrets> {
        let ephemeral = STANDARD.decode(&sealed.ephemeral).context("the ephemeral key is not base64")?;
        let mut text = Zeroizing::new(STANDARD.decode(&sealed.sealed).context("the secrets are not base64")?);
        let refused = || anyhow!("the secrets are not sealed to this task");
        let key = agree(&self.0, UnparsedPublicKey::new(&X25519, &ephemeral), refused(), |shared| {
            let prk = Salt::new(HKDF_SHA256, &[]).extract(shared);
            let okm = prk.expand(&[INFO], &AES_256_GCM).map_err(|_| refused())?;
            Ok(LessSafeKey::new(UnboundKey::from(okm)))
        })?;
        // The key is used once, so the nonce may be fixed.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let aad = task.to_string();
        let plain = key.open_in_place(nonce, Aad::from(aad.as_bytes()), &mut text).map_err(|_| refused())?;
        serde_json::from_slice(plain).context("the secrets cannot be read")
    }
}
