//! Requests to the store.

use backon::{ExponentialBuilder, Retryable};
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use blobs::{Digest, Key, Signed};
use bytes::Bytes;
use reqwest::{Client, Response, StatusCode, header::HeaderMap};
use rusty_s3::{Bucket, Credentials, actions::S3Action};
use std::{io, time::Duration};

/// Header of the checksum that the store verifies and keeps.
pub(crate) const CHECKSUM: &str = "x-amz-checksum-sha256";
/// Header of the digest that we keep beside the object.
pub(crate) const META: &str = "x-amz-meta-sha256";

/// Header of the digest of parts' digests, of an object that agents sent in parts.
pub(crate) const PARTS: &str = "x-amz-meta-parts-sha256";

/// Reliability §11: connecting takes 2 s at most.
const CONNECT: Duration = Duration::from_secs(2);
/// A store that sends nothing for so long is away. Longer than a part of an upload should take.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the signature of a request of our own is good.
const OWN: Duration = Duration::from_secs(15 * 60);
/// Repeats of what may succeed later.
const REPEATS: usize = 4;
/// Longest text of an error that is read.
const MAX_TEXT: usize = 500;

/// A bucket and how it is reached.
pub(crate) struct Store {
    pub(crate) client: Client,
    /// As this process reaches it.
    pub(crate) bucket: Bucket,
    /// As agents and people reach it.
    pub(crate) public: Bucket,
    pub(crate) credentials: Credentials,
}

pub(crate) fn client() -> reqwest::Result<Client> {
    Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).build()
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the store cannot be reached: {0}")]
    Away(String),
    #[error("the store answered {status} {code}: {message}")]
    Refused { status: StatusCode, code: String, message: String },
}

impl Failure {
    /// Without the URL, which is a permission.
    fn away(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        Self::Away(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Away(_) => None,
            Self::Refused { status, .. } => Some(*status),
        }
    }

    /// Whether the same request may succeed later. A conflict is another writer of the same object.
    pub(crate) fn is_temporary(&self) -> bool {
        self.status()
            .is_none_or(|status| status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429))
    }

    async fn of(response: Response) -> Self {
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let tag = |name: &str| {
            let inside = text.split_once(&format!("<{name}>"))?.1.split_once(&format!("</{name}>"))?.0;
            Some(inside.chars().take(MAX_TEXT).collect::<String>())
        };
        let code = tag("Code").unwrap_or_default();
        Self::Refused {
            status,
            code,
            message: tag("Message").unwrap_or_else(|| "no reason given".to_owned()),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}

/// A request of ours, ready to be sent.
pub(crate) struct Own {
    method: &'static str,
    signed: Signed,
}

/// Signs an action with these headers.
pub(crate) fn signed<'a, A: S3Action<'a>>(
    mut action: A,
    headers: Vec<(String, String)>,
    valid: Duration,
) -> Signed {
    for (name, value) in &headers {
        action.headers_mut().insert(name.clone(), value.clone());
    }
    Signed { url: action.sign(valid).into(), headers }
}

/// Signs a request of our own.
pub(crate) fn own<'a, A: S3Action<'a>>(action: A, headers: Vec<(String, String)>) -> Own {
    Own { method: A::METHOD.to_str(), signed: signed(action, headers, OWN) }
}

/// Name of the object of a blob.
pub(crate) fn name(key: &Key) -> String {
    format!("{key}!")
}

/// A digest as the store writes it.
pub(crate) fn checksum(sha256: &Digest) -> String {
    B64.encode(sha256)
}

/// What an object's bytes are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The digest of all of them.
    Whole(Digest),
    /// The digest of the digests of its parts.
    Parts(Digest),
}

impl Identity {
    /// As the headers say. What the store says of parts by itself is none: it does not tell how they were cut.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name)?.to_str().ok();
        let ours = |name| text(name).and_then(|text| hex::decode(text).ok()?.try_into().ok());
        let theirs = || B64.decode(text(CHECKSUM)?).ok()?.try_into().ok();
        ours(PARTS).map(Self::Parts).or_else(|| ours(META).or_else(theirs).map(Self::Whole))
    }

    pub(crate) fn sha256(self) -> Digest {
        match self {
            Self::Whole(sha256) | Self::Parts(sha256) => sha256,
        }
    }
}

impl Store {
    /// Sends it, again where that may help.
    pub(crate) async fn send(&self, own: &Own, body: Bytes) -> Result<Response, Failure> {
        let once = || async {
            let method = own.method.parse().unwrap_or_default();
            let mut request = self.client.request(method, &own.signed.url).body(body.clone());
            for (name, value) in &own.signed.headers {
                request = request.header(name, value);
            }
            let response = request.send().await.map_err(Failure::away)?;
            if response.status().is_success() { Ok(response) } else { Err(Failure::of(response).await) }
        };
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(2))
            .with_max_times(REPEATS)
            .with_jitter();
        once.retry(pauses).when(Failure::is_temporary).await
    }
}
