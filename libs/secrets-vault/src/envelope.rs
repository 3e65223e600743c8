//! How a ciphertext lies in our tables: bytes, not Vault's text, whose base64 can be written in several ways.

use base64::{Engine, engine::general_purpose::STANDARD as B64};
use secrets::{Error, Result};

const MAGIC: [u8; 2] = *b"gv";
/// Magic and version of the key.
const HEADER: usize = 2 + 4;

/// `vault:v3:…` as bytes.
pub(crate) fn pack(text: &str) -> Result<Vec<u8>> {
    let parts = text.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
    let parsed =
        parts.and_then(|(version, body)| Some((version.parse::<u32>().ok()?, B64.decode(body).ok()?)));
    let (version, body) = parsed.ok_or(Error::Refused)?;
    let mut packed = Vec::with_capacity(HEADER + body.len());
    packed.extend_from_slice(&MAGIC);
    packed.extend_from_slice(&version.to_be_bytes());
    packed.extend_from_slice(&body);
    Ok(packed)
}

/// The version of the key. Versions count from 1: Vault reads a 0 as a 1, which would let two ciphertexts be one.
pub(crate) fn version(packed: &[u8]) -> Result<u32> {
    match packed {
        [m0, m1, v0, v1, v2, v3, _, ..] if [*m0, *m1] == MAGIC => {
            match u32::from_be_bytes([*v0, *v1, *v2, *v3]) {
                0 => Err(Error::Refused),
                version => Ok(version),
            }
        }
        _ => Err(Error::Refused),
    }
}

/// As Vault wants it.
pub(crate) fn unpack(packed: &[u8]) -> Result<String> {
    let version = version(packed)?;
    Ok(format!("vault:v{version}:{}", B64.encode(&packed[HEADER..])))
}
