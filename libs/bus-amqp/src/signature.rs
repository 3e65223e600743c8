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
/// Header that says which key made it.
const KEY_ID: &str = "gantry-key";

/// The keys that all services of an installation share: the first one signs, all are believed.
#[derive(Clone)]
pub struct SigningKey(Arc<Vec<Named>>);

struct Named {
    /// Of the key, and tells nothing of it.
    id: String,
    key: hmac::Key,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// HMAC-SHA-256 under these secret bytes, the newest key first.
    ///
    /// # Panics
    /// There is no key.
    pub fn new(secrets: &[impl AsRef<[u8]>]) -> Self {
        assert!(!secrets.is_empty(), "messages are signed with a key");
        let named = |secret: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let id = hex::encode(&hmac::sign(&key, b"key id").as_ref()[..4]);
            Named { id, key }
        };
        Self(Arc::new(secrets.iter().map(|secret| named(secret.as_ref())).collect()))
    }

    /// Adds the signature of a message for `address` (its routing key or queue) to its headers.
    pub(crate) fn sign(&self, address: &str, payload: &[u8], headers: &mut FieldTable) {
        let Named { id, key } = &self.0[0];
        let tag = hmac::sign(key, &message(address, payload));
        for (name, text) in [(HEADER, hex::encode(tag)), (KEY_ID, id.clone())] {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(text)));
        }
    }

    /// Whether a message for `address` carries our signature. One without the name of a key is of a process that knows
    /// one key only.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(
        &self,
        address: &str,
        payload: &[u8],
        properties: &BasicProperties,
    ) -> Result<(), BrokerError> {
        let refused = |what: String| BrokerError::Unavailable(format!("{what} was refused"));
        let named = header(properties, KEY_ID);
        let mut keys =
            self.0.iter().filter(|key| named.as_ref().is_none_or(|named| key.id == *named)).peekable();
        if let (None, Some(named)) = (keys.peek(), &named) {
            return Err(refused(format!("a message signed with another key ({named:.8})")));
        }
        let given = header(properties, HEADER).and_then(|text| hex::decode(text).ok()).unwrap_or_default();
        let all = message(address, payload);
        match keys.any(|key| hmac::verify(&key.key, &all, &given).is_ok()) {
            true => Ok(()),
            false => Err(refused("a message without our signature".to_owned())),
        }
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
