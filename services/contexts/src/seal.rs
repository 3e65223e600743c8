//! Sealing to a task's key, as [`agent_api::SealedSecrets`] describes it.

use agent_api::{SealedSecrets, Secrets};
use anyhow::{Context, anyhow};
use aws_lc_rs::{aead, agreement, hkdf};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use ids::TaskId;
use secrets::Zeroizing;

const INFO: &[&[u8]] = &[b"gantry task secrets"];

/// Reads base64 with padding and without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Seals the variables so that only the holder of the task's private key reads them.
pub(crate) fn seal(task: TaskId, public_key: &str, variables: &Secrets) -> anyhow::Result<SealedSecrets> {
    let public = public_key.trim_end_matches('=').replace('-', "+").replace('_', "/");
    let public = LENIENT.decode(public).context("the task's key is not base64")?;
    let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
    let failed = |what: &'static str| move |_| anyhow!(what);
    let mine = agreement::PrivateKey::generate(&agreement::X25519).map_err(failed("no key could be made"))?;
    let ephemeral = mine.compute_public_key().map_err(failed("the key has no public half"))?;
    let key = agreement::agree(&mine, peer, anyhow!("the task's key is not an X25519 key"), |shared| {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(shared);
        let okm = prk.expand(INFO, &aead::AES_256_GCM).map_err(failed("the key could not be derived"))?;
        Ok(aead::LessSafeKey::new(aead::UnboundKey::from(okm)))
    })?;
    let plain = Zeroizing::new(serde_json::to_vec(variables)?);
    let mut sealed = plain.to_vec();
    // The key is used once, so the zero nonce is too. Encryption happens in place: no plain copy stays.
    key.seal_in_place_append_tag(
        aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN]),
        aead::Aad::from(task.to_string()),
        &mut sealed,
    )
    .map_err(failed("the variables could not be sealed"))?;
    Ok(SealedSecrets {
        ephemeral: general_purpose::STANDARD.encode(ephemeral.as_ref()),
        sealed: general_purpose::STANDARD.encode(sealed),
    })
}
