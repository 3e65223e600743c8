//! Writing: the first writer of a key wins, and nothing is visible before it is whole and verified.

use crate::store::{self, CHECKSUM, Failure, META, Store};
use aws_lc_rs::digest::{Context, SHA256};
use blobs::{Body, Digest, Error, Key, Meta, Put, Result};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream::FuturesOrdered};
use reqwest::StatusCode;
use rusty_s3::actions::{CompleteMultipartUploadResponse, CreateMultipartUpload};
use std::{fmt::Write, io};

/// Bytes of a part, and most bytes of what goes in one request. Parts are numbered to 10,000.
const PART: usize = 8 << 20;
/// Parts on their way at the same time.
const AT_A_TIME: usize = 3;

/// Only if nothing has the name yet.
fn first() -> (String, String) {
    ("if-none-match".to_owned(), "*".to_owned())
}

pub(crate) fn header(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

/// A body cut into parts, counted and hashed on the way.
struct Parts {
    body: Body,
    held: BytesMut,
    hasher: Context,
    size: u64,
}

impl Parts {
    /// The next part: shorter than [`PART`] only at the end.
    async fn next(&mut self) -> Result<Bytes> {
        while self.held.len() < PART {
            let Some(piece) = self.body.try_next().await? else { break };
            self.hasher.update(&piece);
            self.size += piece.len() as u64;
            self.held.extend_from_slice(&piece);
        }
        Ok(self.held.split_to(self.held.len().min(PART)).freeze())
    }

    /// What came in all, if it is what was announced.
    fn end(self, key: &Key, announced: Digest) -> Result<Meta> {
        let mut sha256 = Digest::default();
        sha256.copy_from_slice(self.hasher.finish().as_ref());
        if sha256 == announced {
            return Ok(Meta { size: self.size, sha256 });
        }
        let (announced, actual) = (hex::encode(announced), hex::encode(sha256));
        Err(Error::Mismatch { key: key.clone(), what: "digest", announced, actual })
    }
}

/// A part that is stored.
pub(crate) struct Sent {
    pub(crate) etag: String,
    pub(crate) checksum: String,
}

impl Store {
    pub(crate) async fn put(&self, key: &Key, body: Body, announced: Digest) -> Result<Put> {
        let mut parts = Parts { body, held: BytesMut::new(), hasher: Context::new(&SHA256), size: 0 };
        let part = parts.next().await?;
        if part.len() < PART {
            let meta = parts.end(key, announced)?;
            return self.put_whole(key, part, meta).await;
        }
        let name = store::name(key);
        let upload = self.create(&name, header(META, hex::encode(announced))).await?;
        let stored = self.put_parts(key, &upload, part, parts, announced).await;
        if !matches!(stored, Ok(Put::Stored(_))) {
            self.abort(&name, &upload).await;
        }
        stored
    }

    async fn put_whole(&self, key: &Key, bytes: Bytes, meta: Meta) -> Result<Put> {
        let name = store::name(key);
        let action = self.bucket.put_object(Some(&self.credentials), &name);
        let headers = vec![
            first(),
            header(CHECKSUM, store::checksum(&meta.sha256)),
            header(META, hex::encode(meta.sha256)),
        ];
        match self.send(&store::own(action, headers), bytes).await {
            Ok(_) => Ok(Put::Stored(meta)),
            Err(failure) => self.lost(key, failure).await,
        }
    }

    /// Another writer was first, or this was repeated after its answer was lost.
    pub(crate) async fn lost(&self, key: &Key, failure: Failure) -> Result<Put> {
        match failure.status() {
            Some(StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND | StatusCode::CONFLICT) => {
                self.head(key).await?.map(Put::AlreadyExists).ok_or_else(|| io::Error::from(failure).into())
            }
            _ => Err(io::Error::from(failure).into()),
        }
    }

    /// Begins an upload in parts of an object that will have this in its metadata.
    pub(crate) async fn create(&self, name: &str, identity: (String, String)) -> Result<String> {
        let action = self.bucket.create_multipart_upload(Some(&self.credentials), name);
        let headers = vec![header("x-amz-checksum-algorithm", "SHA256"), identity];
        let response =
            self.send(&store::own(action, headers), Bytes::new()).await.map_err(io::Error::from)?;
        let text = response.text().await.map_err(|error| io::Error::other(error.without_url()))?;
        let made = CreateMultipartUpload::parse_response(&text).map_err(io::Error::other)?;
        Ok(made.upload_id().to_owned())
    }

    async fn put_parts(
        &self,
        key: &Key,
        upload: &str,
        mut part: Bytes,
        mut parts: Parts,
        announced: Digest,
    ) -> Result<Put> {
        let name = store::name(key);
        let (mut sending, mut sent) = (FuturesOrdered::new(), Vec::new());
        for number in 1.. {
            if part.is_empty() {
                break;
            }
            sending.push_back(self.put_part(&name, upload, number, part));
            if sending.len() == AT_A_TIME {
                sent.extend(sending.try_next().await?);
            }
            part = parts.next().await?;
        }
        while let Some(done) = sending.next().await {
            sent.push(done?);
        }
        let meta = parts.end(key, announced)?;
        match self.complete(&name, upload, &sent).await {
            Ok(()) => Ok(Put::Stored(meta)),
            Err(failure) => self.lost(key, failure).await,
        }
    }

    async fn put_part(&self, name: &str, upload: &str, number: u16, bytes: Bytes) -> Result<Sent, io::Error> {
        let action = self.bucket.upload_part(Some(&self.credentials), name, number, upload);
        let checksum = store::checksum(&blobs::digest(&bytes));
        let response =
            self.send(&store::own(action, vec![header(CHECKSUM, checksum.as_str())]), bytes).await?;
        let etag = response.headers().get("etag").and_then(|etag| etag.to_str().ok());
        let etag = etag.ok_or_else(|| io::Error::other("the store gave a part no ETag"))?.to_owned();
        Ok(Sent { etag, checksum })
    }

    pub(crate) async fn complete(&self, name: &str, upload: &str, sent: &[Sent]) -> Result<(), Failure> {
        let mut body = String::from("<CompleteMultipartUpload>");
        for (number, Sent { etag, checksum }) in (1..).zip(sent) {
            let etag = etag.replace('"', "&quot;");
            let _ = write!(
                body,
                "<Part><ChecksumSHA256>{checksum}</ChecksumSHA256><ETag>{etag}</ETag><PartNumber>{number}</PartNumber></Part>"
            );
        }
        body.push_str("</CompleteMultipartUpload>");
        let action =
            self.bucket.complete_multipart_upload(Some(&self.credentials), name, upload, std::iter::empty());
        let response = self.send(&store::own(action, vec![first()]), Bytes::from(body)).await?;
        let status = response.status();
        // A store may begin to answer before it knows whether all goes well.
        let text = response.text().await.unwrap_or_default();
        CompleteMultipartUploadResponse::parse(&text).map_err(|error| Failure::Refused {
            status,
            code: "Incomplete".to_owned(),
            message: error.to_string(),
        })?;
        Ok(())
    }

    /// What cannot be given up now is given up by the next look for stale uploads.
    pub(crate) async fn abort(&self, name: &str, upload: &str) {
        let action = self.bucket.abort_multipart_upload(Some(&self.credentials), name, upload);
        match self.send(&store::own(action, Vec::new()), Bytes::new()).await {
            Ok(_) => {}
            Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => {}
            Err(failure) => tracing::warn!(%failure, name, "an upload could not be given up"),
        }
    }
}
