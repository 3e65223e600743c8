//! Calls of clouds: tried again while they are not answered, and told of without what they carried.

use crate::Error;
use backon::ExponentialBuilder;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use std::time::Duration;

/// One try of a call.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn client(service: &'static str) -> Result<Client, Error> {
    Client::builder().timeout(PATIENCE).build().map_err(away(service))
}

pub(crate) fn tries() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(500)).with_jitter().with_max_times(3)
}

pub(crate) fn is_temporary(error: &Error) -> bool {
    match error {
        Error::Away { .. } => true,
        Error::Refused { status, .. } => *status >= 500 || *status == StatusCode::TOO_MANY_REQUESTS,
    }
}

pub(crate) fn away<E: std::error::Error>(service: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Away { service, message: error.to_string() }
}

/// The text of an answer that is one.
pub(crate) async fn answer(service: &'static str, request: RequestBuilder) -> Result<String, Error> {
    // Addresses of requests may hold what they ask for.
    let plain = |error: reqwest::Error| away(service)(error.without_url());
    let answer = request.send().await.map_err(plain)?;
    let status = answer.status();
    let text = answer.text().await.map_err(plain)?;
    if status.is_success() {
        return Ok(text);
    }
    Err(Error::Refused { service, status: status.as_u16(), message: message(&text) })
}

/// What an error says: JSON of ECR and of Google's services, XML of Amazon's STS, or anything.
fn message(text: &str) -> String {
    #[derive(Deserialize)]
    struct Said {
        #[serde(alias = "Message")]
        message: String,
    }
    #[derive(Deserialize)]
    struct Within {
        #[serde(alias = "Error")]
        error: Said,
    }
    #[derive(Deserialize)]
    struct OAuth {
        error_description: String,
    }
    let json = serde_json::from_str::<Said>(text).ok();
    let json = json.or_else(|| Some(serde_json::from_str::<Within>(text).ok()?.error));
    let said = json.or_else(|| Some(quick_xml::de::from_str::<Within>(text).ok()?.error));
    let said = said.map(|said| said.message);
    let said = said.or_else(|| Some(serde_json::from_str::<OAuth>(text).ok()?.error_description));
    said.unwrap_or_else(|| text.chars().take(200).collect())
}
