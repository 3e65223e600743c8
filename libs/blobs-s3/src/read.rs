//! Reading and removing.

use crate::store::{self, Failure, Identity, Store};
use aws_lc_rs::digest::{Context, SHA256};
use blobs::{Body, Error, Get, Key, Meta, PART, Result};
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
        let identity = Identity::of(response.headers()).ok_or_else(|| Error::Damaged(key.clone()))?;
        Ok(Some(Meta { size, sha256: identity.sha256() }))
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
        let identity = Identity::of(response.headers()).ok_or_else(|| Error::Damaged(key.clone()))?;
        let body = verified(key.clone(), identity, pieces(response));
        Ok(Get { meta: Meta { size, sha256: identity.sha256() }, range: 0..size, body })
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
        let meta = match Identity::of(response.headers()) {
            Some(identity) => Meta { size, sha256: identity.sha256() },
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

/// Hashes a body as its identity was made.
struct Hasher {
    identity: Identity,
    /// Of the whole, or of the part that is read.
    bytes: Context,
    /// Bytes of that part, and digests of those before it.
    part: u64,
    parts: Context,
}

impl Hasher {
    fn new(identity: Identity) -> Self {
        Self { identity, bytes: Context::new(&SHA256), part: 0, parts: Context::new(&SHA256) }
    }

    fn update(&mut self, mut piece: &[u8]) {
        if let Identity::Whole(_) = self.identity {
            return self.bytes.update(piece);
        }
        while !piece.is_empty() {
            let room = usize::try_from(PART - self.part).unwrap_or(usize::MAX);
            let (of_this, rest) = piece.split_at(room.min(piece.len()));
            self.bytes.update(of_this);
            self.part += of_this.len() as u64;
            if self.part == PART {
                self.next_part();
            }
            piece = rest;
        }
    }

    fn next_part(&mut self) {
        let ended = std::mem::replace(&mut self.bytes, Context::new(&SHA256));
        self.parts.update(ended.finish().as_ref());
        self.part = 0;
    }

    fn ends_right(mut self) -> bool {
        match self.identity {
            Identity::Whole(expected) => self.bytes.finish().as_ref() == expected,
            Identity::Parts(expected) => {
                if self.part > 0 {
                    self.next_part();
                }
                self.parts.finish().as_ref() == expected
            }
        }
    }
}

/// Ends with an error if the bytes are not those of the identity (reliability F32).
fn verified(key: Key, expected: Identity, body: Body) -> Body {
    stream::try_unfold((body, Hasher::new(expected), key), |(mut body, mut hasher, key)| async move {
        match body.try_next().await? {
            Some(piece) => {
                hasher.update(&piece);
                Ok(Some((piece, (body, hasher, key))))
            }
            None if hasher.ends_right() => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, Error::Damaged(key))),
        }
    })
    .boxed()
}
