//! Reading and removing.

use crate::store::{self, Failure, Store};
use aws_lc_rs::digest::{Context, SHA256};
use blobs::{Body, Digest, Error, Get, Key, Meta, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::{Response, StatusCode, header};
use std::{io, ops::Range};

/// The store is to say its checksum.
fn with_checksum() -> (String, String) {
    ("x-amz-checksum-mode".to_owned(), "ENABLED".to_owned())
}

fn nothing() -> Body {
    stream::empty().boxed()
}

fn failed(key: &Key, failure: Failure) -> Error {
    match failure {
        Failure::Refused { status: StatusCode::NOT_FOUND, ref code, .. } if code != "NoSuchBucket" => {
            Error::Missing(key.clone())
        }
        other => io::Error::from(other).into(),
    }
}

impl Store {
    pub(crate) async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        let name = store::name(key);
        let action = self.bucket.head_object(Some(&self.credentials), &name);
        let response = match self.send(&store::own(action, vec![with_checksum()]), Bytes::new()).await {
            Ok(response) => response,
            Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => return Ok(None),
            Err(failure) => return Err(io::Error::from(failure).into()),
        };
        let size = length(&response).ok_or_else(|| Error::Damaged(key.clone()))?;
        // Something that neither a service nor a presigned URL of ours has put there.
        let sha256 = store::digest(response.headers()).ok_or_else(|| Error::Damaged(key.clone()))?;
        Ok(Some(Meta { size, sha256 }))
    }

    async fn known(&self, key: &Key) -> Result<Meta> {
        self.head(key).await?.ok_or_else(|| Error::Missing(key.clone()))
    }

    pub(crate) async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Get> {
        match range {
            None => self.whole(key).await,
            // No request can ask for a part without bytes.
            Some(range) if range.start >= range.end => {
                let meta = self.known(key).await?;
                let fits = range.start == range.end && range.start <= meta.size;
                if !fits {
                    return Err(Error::Range { key: key.clone(), size: meta.size });
                }
                Ok(Get { meta, range, body: nothing() })
            }
            Some(range) => self.part(key, range).await,
        }
    }

    /// All of it; the last piece comes only if all were what was stored.
    async fn whole(&self, key: &Key) -> Result<Get> {
        let name = store::name(key);
        let action = self.bucket.get_object(Some(&self.credentials), &name);
        let sent = self.send(&store::own(action, vec![with_checksum()]), Bytes::new()).await;
        let response = sent.map_err(|failure| failed(key, failure))?;
        let size = length(&response).ok_or_else(|| Error::Damaged(key.clone()))?;
        let sha256 = store::digest(response.headers()).ok_or_else(|| Error::Damaged(key.clone()))?;
        let body = verified(key.clone(), sha256, pieces(response));
        Ok(Get { meta: Meta { size, sha256 }, range: 0..size, body })
    }

    async fn part(&self, key: &Key, range: Range<u64>) -> Result<Get> {
        let name = store::name(key);
        let action = self.bucket.get_object(Some(&self.credentials), &name);
        let bytes = ("range".to_owned(), format!("bytes={}-{}", range.start, range.end - 1));
        let response = match self.send(&store::own(action, vec![bytes]), Bytes::new()).await {
            Ok(response) => response,
            Err(failure) if failure.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
                let meta = self.known(key).await?;
                if range.start != meta.size {
                    return Err(Error::Range { key: key.clone(), size: meta.size });
                }
                return Ok(Get { meta, range: range.start..range.start, body: nothing() });
            }
            Err(failure) => return Err(failed(key, failure)),
        };
        let size = total(&response).ok_or_else(|| io::Error::other("the store does not serve ranges"))?;
        let meta = match store::digest(response.headers()) {
            Some(sha256) => Meta { size, sha256 },
            None => self.known(key).await?,
        };
        Ok(Get { meta, range: range.start..range.end.min(size), body: pieces(response) })
    }

    pub(crate) async fn delete(&self, key: &Key) -> Result<bool> {
        // A store answers the same whether there was one or not.
        let name = store::name(key);
        let looked = self.bucket.head_object(Some(&self.credentials), &name);
        match self.send(&store::own(looked, Vec::new()), Bytes::new()).await {
            Ok(_) => {}
            Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => return Ok(false),
            Err(failure) => return Err(io::Error::from(failure).into()),
        }
        let action = self.bucket.delete_object(Some(&self.credentials), &name);
        self.send(&store::own(action, Vec::new()), Bytes::new()).await.map_err(io::Error::from)?;
        Ok(true)
    }
}

/// Of the header, because an answer to `HEAD` has no body.
fn length(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `bytes 0-9/100`: of an answer with a part.
fn total(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

fn pieces(response: Response) -> Body {
    response.bytes_stream().map_err(|error| io::Error::other(error.without_url())).boxed()
}

/// Ends with an error if the bytes are not those of the digest (reliability F32).
fn verified(key: Key, expected: Digest, body: Body) -> Body {
    stream::try_unfold((body, Context::new(&SHA256), key), move |(mut body, mut hasher, key)| async move {
        match body.try_next().await? {
            Some(piece) => {
                hasher.update(&piece);
                Ok(Some((piece, (body, hasher, key))))
            }
            None if hasher.finish().as_ref() == expected => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, Error::Damaged(key))),
        }
    })
    .boxed()
}
