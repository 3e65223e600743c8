//! A signature over the bytes of every message: somebody who merely reached the broker cannot make the suite act
//! (reliability §5.1, `sig`).

use aws_lc_rs::hmac;
use bus::broker::BrokerError;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString},
};
use std::{fmt, sync::Arc};

/// Header of the signature, in hexadecimal digits.
const HEADER: &str = "gantry-signature";

/// The key that all services of an installation share.
#[derive(Clone)]
pub struct SigningKey(Arc<hmac::Key>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// HMAC-SHA-256 under these secret bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// Adds the signature of a message for `address` (its routing key or queue) to its headers.
    pub(crate) fn sign(&self, address: &str, payload: &[u8], headers: &mut FieldTable) {
        let tag = self.tag(address, payload);
        headers.insert(HEADER.into(), AMQPValue::LongString(LongString::from(hex::encode(tag))));
    }

    /// Whether a message for `address` carries our signature.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(
        &self,
        address: &str,
        payload: &[u8],
        properties: &BasicProperties,
    ) -> Result<(), BrokerError> {
        let given = header(properties, HEADER).and_then(|text| hex::decode(text).ok()).unwrap_or_default();
        hmac::verify(&self.0, &message(address, payload), &given)
            .map_err(|_| BrokerError::Unavailable("a message without our signature was refused".to_owned()))
    }

    fn tag(&self, address: &str, payload: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0, &message(address, payload))
    }
}

/// A message signed for one address says nothing at another.
fn message(address: &str, payload: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(address.len() + 1 + payload.len());
    all.extend_from_slice(address.as_bytes());
    all.push(0);
    all.extend_from_slice(payload);
    all
}

/// A header's text.
pub(crate) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        AMQPValue::ShortString(value) => Some(value.to_string()),
        _ => None,
    }
}
