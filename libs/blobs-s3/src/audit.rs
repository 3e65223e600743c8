//! Reads every blob and compares its bytes with the digest that it was stored under.

use crate::{S3Blobs, store};
use blobs::{Damage, Error, Key};
use bytes::Bytes;
use futures::TryStreamExt;
use rusty_s3::actions::ListObjectsV2;
use std::io;

impl S3Blobs {
    /// Every damaged blob, and how many were read. Objects that are not named as ours are left alone.
    ///
    /// # Errors
    /// The store does not list or read at all.
    pub async fn audit(&self) -> io::Result<(u64, Vec<Damage>)> {
        let store = &*self.0;
        let (mut read, mut damaged, mut token) = (0, Vec::new(), None::<String>);
        loop {
            let mut action = store.bucket.list_objects_v2(Some(&store.credentials));
            if let Some(token) = token.take() {
                action.with_continuation_token(token);
            }
            let response = store.send(&store::own(action, Vec::new()), Bytes::new()).await?;
            let text = response.text().await.map_err(|error| io::Error::other(error.without_url()))?;
            let page = ListObjectsV2::parse_response(&text).map_err(io::Error::other)?;
            for object in page.contents {
                let Some(key) = object.key.strip_suffix('!').and_then(|key| Key::new(key).ok()) else {
                    continue;
                };
                match self.sound(&key).await {
                    // Removed meanwhile.
                    Err(Error::Missing(_)) => continue,
                    Ok(true) => {}
                    Ok(false) | Err(Error::Damaged(_)) => {
                        damaged.push(Damage { place: object.key, key: Some(key.as_str().to_owned()) });
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
                read += 1;
            }
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok((read, damaged));
            }
        }
    }

    async fn sound(&self, key: &Key) -> blobs::Result<bool> {
        let mut body = self.0.get(key, None).await?.body;
        loop {
            match body.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
