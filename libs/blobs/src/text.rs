//! Texts that are too large for a message, on their way.

use crate::{Blobs, Error, Key, Result, body, digest};
use contracts::text::{INLINE, Text};
use ids::MessageId;

/// Gives a text the form in which it rides in a message.
///
/// # Errors
/// It is large and the store does not take it.
pub async fn send(blobs: &dyn Blobs, text: String) -> Result<Text> {
    if text.len() <= INLINE {
        return Ok(Text::Inline(text));
    }
    // A key of its own, so that the receiver can remove it whoever else sent the same.
    let key = Key::new(format!("messages/{}", MessageId::new()))?;
    let sha256 = digest(text.as_bytes());
    blobs.put(&key, body(text.into_bytes()), sha256).await?;
    Ok(Text::Blob { blob: key.as_str().to_owned() })
}

/// Reads a text that came with a message, and removes what it left in the store.
///
/// # Errors
/// The store does not have it.
pub async fn receive(blobs: &dyn Blobs, text: Text) -> Result<String> {
    let key = match text {
        Text::Inline(text) => return Ok(text),
        Text::Blob { blob } => Key::new(blob)?,
    };
    if !key.as_str().starts_with("messages/") {
        return Err(Error::Key(key.as_str().to_owned()));
    }
    let bytes = blobs.get(&key, None).await?.bytes().await?;
    if let Err(error) = blobs.delete(&key).await {
        tracing::warn!(%key, error = &error as &dyn std::error::Error, "a text that was read stays in the store");
    }
    String::from_utf8(bytes).map_err(|_| Error::Damaged(key))
}
