//! Requests to Vault.

use backon::{ExponentialBuilder, Retryable};
use reqwest::{Client, Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use std::{io, time::Duration};

/// Reliability §11: connecting takes 1 s at most, an answer 3 s, and there are two repeats.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
const REPEATS: usize = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("Vault at {0} cannot be reached: {1}")]
    Away(String, String),
    #[error("Vault at {0} is sealed: have it unsealed")]
    Sealed(String),
    #[error("Vault at {at} answered {status}: {why}")]
    Refused { at: String, status: StatusCode, why: String },
}

impl Failure {
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Away(..) | Self::Sealed(_) => None,
        }
    }

    fn is_temporary(&self) -> bool {
        self.status().is_none_or(|status| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::Refused { status: StatusCode::FORBIDDEN, .. } => io::ErrorKind::PermissionDenied,
            Failure::Refused { .. } => io::ErrorKind::Other,
            Failure::Away(..) | Failure::Sealed(_) => io::ErrorKind::NotConnected,
        };
        Self::new(kind, failure)
    }
}

/// What Vault says when it refuses.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

/// A client for one Vault.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    base: Url,
}

impl Http {
    pub(crate) fn new(address: &str) -> io::Result<Self> {
        let wrong = || {
            let text = format!(
                "{address:?} is not the address of a Vault: write it as https://vault.example.com:8200"
            );
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let mut base: Url = address.parse().map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong());
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client =
            Client::builder().connect_timeout(CONNECT).timeout(ANSWER).build().map_err(io::Error::other)?;
        Ok(Self { client, base })
    }

    fn at(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Sends a request, again where that may help; the answer's document, or nothing where there is none.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Value, Failure> {
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(REPEATS);
        let once = || self.once(method.clone(), path, token, body);
        once.retry(pauses).when(Failure::is_temporary).await
    }

    async fn once(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Value, Failure> {
        let away = |error: reqwest::Error| {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            Failure::Away(self.at(), causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
        };
        let url = self
            .base
            .join(&format!("v1/{path}"))
            .map_err(|error| Failure::Away(self.at(), error.to_string()))?;
        let mut request = self.client.request(method, url).header("x-vault-request", "true");
        if let Some(token) = token {
            request = request.header("x-vault-token", token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        let text = response.bytes().await.map_err(away)?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&text).unwrap_or_default());
        }
        let errors = serde_json::from_slice::<Errors>(&text).map(|found| found.errors).unwrap_or_default();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Failure::Sealed(self.at()));
        }
        let why = if errors.is_empty() { "no reason given".to_owned() } else { errors.join("; ") };
        Err(Failure::Refused { at: self.at(), status, why })
    }
}
