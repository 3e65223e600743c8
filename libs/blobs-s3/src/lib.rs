//! Blobs as objects of an S3 bucket.
//!
//! Services read and write what they make themselves; what agents and people transfer goes to and from the store by
//! presigned URL, and never through a service.
//!
//! An object's name is the blob's key and a `!`, which no key has: so that no object is the folder of another, which
//! stores over file systems refuse. The digest of a blob that a service wrote lies in its metadata; of one that came
//! by presigned URL the store keeps the checksum that it verified; of one that came in parts so, the digest of theirs lies in its
//! metadata.

mod audit;
mod parts;
mod read;
mod stale;
mod store;
mod write;

use async_trait::async_trait;
use blobs::{Blobs, Body, Digest, Get, InParts, Key, Meta, Method, Put, Result, Signed};
use chrono::{DateTime, Utc};
use rusty_s3::{Bucket, Credentials, UrlStyle, actions::S3Action};
use std::{fmt, ops::Range, sync::Arc, time::Duration};
use store::Store;

/// Longest that a presigned URL can be good.
const WEEK: u64 = 7 * 24 * 3600;

/// Where the bucket is, and with what it opens.
#[derive(Clone, Default)]
pub struct Config {
    /// Address of the store, for example `https://s3.eu-central-1.amazonaws.com`.
    pub endpoint: String,
    /// Address under which agents and people reach it; empty: the same.
    pub public_endpoint: String,
    /// Its region; stores without regions take any.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Name of the access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
}

/// Why the adapter cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// An address is none.
    #[error("{0:?} is not the address of an S3 store: write it as https://s3.example.com")]
    Endpoint(String),
    /// The HTTP client cannot be made.
    #[error("no HTTP client")]
    Client(#[source] reqwest::Error),
    /// The store does not let us in, or has no such bucket.
    #[error("the bucket {bucket} cannot be used: {why}")]
    Bucket {
        /// Which.
        bucket: String,
        /// What the store says.
        why: String,
    },
}

/// The adapter; cheap to clone.
#[derive(Clone)]
pub struct S3Blobs(Arc<Store>);

impl fmt::Debug for S3Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Blobs").field(&self.0.bucket.base_url().as_str()).finish()
    }
}

impl S3Blobs {
    /// An adapter for this bucket. Nothing is sent yet: see [`Self::check`].
    ///
    /// # Errors
    /// An address cannot be read, or there can be no HTTP client.
    pub fn new(config: &Config) -> Result<Self, Unusable> {
        let bucket = |endpoint: &str| {
            let unusable = || Unusable::Endpoint(endpoint.to_owned());
            let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
            let url = endpoint.parse().map_err(|_| unusable())?;
            Bucket::new(url, style, config.bucket.clone(), config.region.clone()).map_err(|_| unusable())
        };
        let public =
            if config.public_endpoint.is_empty() { &config.endpoint } else { &config.public_endpoint };
        Ok(Self(Arc::new(Store {
            client: store::client().map_err(Unusable::Client)?,
            bucket: bucket(&config.endpoint)?,
            public: bucket(public)?,
            credentials: Credentials::new(&config.access_key, &config.secret_key),
        })))
    }

    /// Asks the store whether the bucket is there and opens. One that does not answer is no error: it may come back.
    ///
    /// # Errors
    /// The bucket is missing, or may not be used.
    pub async fn check(&self) -> Result<(), Unusable> {
        let store = &*self.0;
        let action = store.bucket.head_bucket(Some(&store.credentials));
        match store.send(&store::own(action, Vec::new()), Default::default()).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_temporary() => {
                tracing::warn!(%failure, bucket = store.bucket.name(), "the store of blobs does not answer");
                Ok(())
            }
            Err(failure) => {
                let bucket = store.bucket.name().to_owned();
                Err(Unusable::Bucket { bucket, why: failure.to_string() })
            }
        }
    }

    fn public(&self, key: &Key, disposition: &str, expires: DateTime<Utc>) -> Signed {
        let (store, name) = (&*self.0, store::name(key));
        let mut action = store.public.get_object(Some(&store.credentials), &name);
        action.query_mut().insert("response-content-disposition", disposition);
        action.query_mut().insert("response-content-type", "application/octet-stream");
        store::signed(action, Vec::new(), until(expires))
    }
}

/// From now; a URL is good for a second at least, and a week at most.
fn until(expires: DateTime<Utc>) -> Duration {
    let seconds = (expires - Utc::now()).num_seconds();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default().clamp(1, WEEK))
}

#[async_trait]
impl Blobs for S3Blobs {
    /// Stores it in one request or, if it is large, in parts. Repeats what may have been stored although no answer
    /// came; it is then [`Put::AlreadyExists`].
    async fn put(&self, key: &Key, body: Body, sha256: Digest) -> Result<Put> {
        self.0.put(key, body, sha256).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Get> {
        self.0.get(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Meta>> {
        self.0.head(key).await
    }

    async fn delete(&self, key: &Key) -> Result<bool> {
        self.0.delete(key).await
    }

    fn in_parts(&self) -> Option<&dyn InParts> {
        Some(self)
    }

    fn sign(&self, key: &Key, method: Method, expires: DateTime<Utc>) -> Signed {
        match method {
            Method::Get => self.public(key, &blobs::disposition(None), expires),
            Method::Put { size, sha256 } => {
                let (store, name) = (&*self.0, store::name(key));
                let action = store.public.put_object(Some(&store.credentials), &name);
                let headers = vec![
                    ("content-length".to_owned(), size.to_string()),
                    (store::CHECKSUM.to_owned(), store::checksum(&sha256)),
                ];
                store::signed(action, headers, until(expires))
            }
        }
    }

    fn sign_download(&self, key: &Key, expires: DateTime<Utc>, name: &str) -> String {
        self.public(key, &blobs::disposition(Some(name)), expires).url
    }
}
