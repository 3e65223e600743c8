//! Requests to the collector.

use backon::{ExponentialBuilder, Retryable};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use reqwest::{
    Client, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
    redirect,
};
use std::time::Duration;

/// Reliability §11: connecting takes 1 s at most, an answer 3 s, and there are two repeats.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
const REPEATS: usize = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no collector of this address.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The address is none.
    #[error("{0:?} is not the address of a collector: write it as http://collector.example.com:4318")]
    Address(String),
    /// The headers cannot be read. They are secret, so the text does not show them.
    #[error("the headers for the collector cannot be read: write them as name=value,name=value")]
    Headers,
    /// The client cannot be made.
    #[error("requests to the collector cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Why spans were not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("it cannot be reached: {0}")]
    Away(String),
    #[error("it answered {0}")]
    Answered(StatusCode),
}

impl Failure {
    /// Whether OTLP says to try again.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::Answered(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

/// A collector.
#[derive(Debug)]
pub struct Target {
    client: Client,
    url: Url,
}

impl Target {
    /// The collector at a base address, `http://collector:4318`, to which `/v1/traces` is added; `headers` are sent with
    /// every request, as `name=value,name=value`.
    ///
    /// # Errors
    /// The address or the headers cannot be used.
    pub fn new(address: &str, headers: &str) -> Result<Self, Refused> {
        let wrong = || Refused::Address(address.to_owned());
        let mut url: Url = address.parse().map_err(|_| wrong())?;
        let plain = matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none();
        // What is in the address would be in the log too.
        if !plain || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong());
        }
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            // Headers would go to wherever it points.
            .redirect(redirect::Policy::none())
            .default_headers(read(headers)?)
            .build()
            .map_err(Refused::Client)?;
        Ok(Self { client, url })
    }

    /// Where it is, for the log.
    pub(crate) fn at(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Delivers, again where that may help; how many spans the collector did not want.
    pub(crate) async fn send(&self, request: ExportTraceServiceRequest) -> Result<u64, Failure> {
        let body = request.encode_to_vec();
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(REPEATS);
        let answer = (|| self.once(body.clone())).retry(pauses).when(Failure::is_temporary).await?;
        let said = answer.partial_success.map(|said| said.rejected_spans).unwrap_or_default();
        Ok(u64::try_from(said).unwrap_or_default())
    }

    async fn once(&self, body: Vec<u8>) -> Result<ExportTraceServiceResponse, Failure> {
        let away = |error: reqwest::Error| {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            Failure::Away(causes.last().map_or_else(|| error.to_string(), ToString::to_string))
        };
        let sent = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/x-protobuf");
        let answer = sent.body(body).send().await.map_err(away)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Failure::Answered(status));
        }
        // What it says is a courtesy: the spans are there.
        let body = answer.bytes().await.unwrap_or_default();
        Ok(ExportTraceServiceResponse::decode(body).unwrap_or_default())
    }
}

fn read(headers: &str) -> Result<HeaderMap, Refused> {
    let mut all = HeaderMap::new();
    all.insert(USER_AGENT, HeaderValue::from_static("gantry"));
    for pair in headers.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(Refused::Headers)?;
        let name: HeaderName = name.trim().parse().map_err(|_| Refused::Headers)?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| Refused::Headers)?;
        value.set_sensitive(true);
        all.insert(name, value);
    }
    Ok(all)
}
