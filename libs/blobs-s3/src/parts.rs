//! Uploads in parts that agents send by presigned URLs.

use crate::{
    S3Blobs,
    store::{self, CHECKSUM, PARTS, Store},
    until,
    write::{Sent, header},
};
use async_trait::async_trait;
use blobs::{Announced, InParts, Key, Meta, Put, Result, Signed, incomplete};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use rusty_s3::actions::ListParts;
use std::{collections::BTreeMap, io};

/// The store's number of a part: from 1.
fn number(at: usize) -> Option<u16> {
    u16::try_from(at + 1).ok()
}

#[async_trait]
impl InParts for S3Blobs {
    async fn begin(&self, key: &Key, announced: &Announced) -> Result<String> {
        self.0.create(&store::name(key), header(PARTS, hex::encode(announced.sha256()))).await
    }

    fn sign_part(
        &self,
        key: &Key,
        upload: &str,
        announced: &Announced,
        at: usize,
        expires: DateTime<Utc>,
    ) -> Option<Signed> {
        let (size, sha256) = announced.part(at)?;
        let (store, name) = (&*self.0, store::name(key));
        let action = store.public.upload_part(Some(&store.credentials), &name, number(at)?, upload);
        let headers =
            vec![header("content-length", size.to_string()), header(CHECKSUM, store::checksum(&sha256))];
        Some(store::signed(action, headers, until(expires)))
    }

    async fn finish(&self, key: &Key, upload: &str, announced: &Announced) -> Result<Put> {
        let (store, name) = (&*self.0, store::name(key));
        let Some(tags) = store.tags(&name, upload).await? else {
            // There is no such upload any more: it was finished, or given up.
            return match store.head(key).await? {
                Some(meta) => Ok(Put::AlreadyExists(meta)),
                None => Err(incomplete(key, announced, 0)),
            };
        };
        let sent = announced.parts().enumerate().map_while(|(at, (size, sha256))| {
            let (etag, stored) = tags.get(&number(at)?)?;
            (*stored == size).then(|| Sent { etag: etag.clone(), checksum: store::checksum(&sha256) })
        });
        let sent: Vec<Sent> = sent.collect();
        if sent.len() < announced.count() {
            return Err(incomplete(key, announced, sent.len()));
        }
        match store.complete(&name, upload, &sent).await {
            Ok(()) => Ok(Put::Stored(Meta { size: announced.size(), sha256: announced.sha256() })),
            Err(failure) => store.lost(key, failure).await,
        }
    }
}

impl Store {
    /// Tag and size of each part that the store has; `None`: it knows no such upload.
    async fn tags(
        &self,
        name: &str,
        upload: &str,
    ) -> Result<Option<BTreeMap<u16, (String, u64)>>, io::Error> {
        let (mut tags, mut after) = (BTreeMap::new(), None);
        loop {
            let mut action = self.bucket.list_parts(Some(&self.credentials), name, upload);
            if let Some(after) = after {
                action.set_part_number_marker(after);
            }
            let response = match self.send(&store::own(action, Vec::new()), Bytes::new()).await {
                Ok(response) => response,
                Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => return Ok(None),
                Err(failure) => return Err(failure.into()),
            };
            let text = response.text().await.map_err(|error| io::Error::other(error.without_url()))?;
            let page = ListParts::parse_response(&text).map_err(io::Error::other)?;
            tags.extend(page.parts.into_iter().map(|part| (part.number, (part.etag, part.size))));
            after = page.next_part_number_marker;
            if after.is_none() {
                return Ok(Some(tags));
            }
        }
    }
}
