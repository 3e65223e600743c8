//! A thin client of the public API.

use crate::{Exit, Failure, place::Place};
use backon::Retryable;
use eventsource_stream::{Event, Eventsource};
use futures::{Stream, StreamExt};
use reqwest::{Method, Response, header::RETRY_AFTER};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A server that does not even accept a connection within this is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// So often a request that was one too many is sent again.
const TOO_EARLY_TIMES: usize = 3;
/// No longer than this before each.
const TOO_EARLY_MOST: Duration = Duration::from_secs(30);

/// Why a request has no answer, and when to send it again if that may help.
struct Refused {
    failure: Failure,
    wait: Option<Duration>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, wait: None }
    }
}

/// Text as a part of a query or path.
pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Speaks to one server with one token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: String,
    certificate: Option<PathBuf>,
}

impl Client {
    /// A client of the server that the flags and this folder name.
    ///
    /// # Errors
    /// No server or no token is known.
    pub fn connect(global: &crate::Global) -> Result<Self, Failure> {
        let Place { server, token, certificate } = Place::find(global)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT);
        if let Some(file) = &certificate {
            let unusable = |error: &dyn std::fmt::Display| {
                Failure::new(
                    Exit::Connection,
                    format!("the certificate {} cannot be used: {error}", file.display()),
                )
            };
            let text = std::fs::read(file).map_err(|error| unusable(&error))?;
            let found = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| unusable(&error))?;
            builder = builder.tls_certs_merge(found);
        }
        let http = builder.build().map_err(|error| Failure::new(Exit::Connection, error.to_string()))?;
        Ok(Self { http, server, token, certificate })
    }

    /// Base address of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The token, for a git remote.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Certificate that git must trust too, if any.
    pub fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    /// Sends a request, again where it came too early: then the server did nothing, and says when.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response, Failure> {
        let refused = (|| self.send_once(method.clone(), path, body))
            .retry(backon::ConstantBuilder::default().with_max_times(TOO_EARLY_TIMES))
            .when(|refused: &Refused| refused.wait.is_some())
            .adjust(|refused, _| refused.wait);
        refused.await.map_err(|refused| refused.failure)
    }

    async fn send_once(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response, Refused> {
        let mut request =
            self.http.request(method, format!("{}{path}", self.server)).header("Circle-Token", &self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let wait =
            header.filter(|_| status == 429).map(|seconds| Duration::from_secs(seconds).min(TOO_EARLY_MOST));
        let text = response.text().await.unwrap_or_default();
        let said = serde_json::from_str::<Value>(&text).ok().and_then(|json| {
            ["message", "detail", "error", "title"]
                .iter()
                .find_map(|key| json.get(key)?.as_str().map(str::to_owned))
        });
        let message = said.unwrap_or_else(|| format!("the server answered {status} to {path}"));
        Err(Refused { failure: Failure::new(Exit::of_http(status), message), wait })
    }

    /// The causes say what the error itself does not: refused, unknown name, certificate not trusted.
    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut text = format!("{} cannot be reached", self.server);
        let mut cause = std::error::Error::source(error);
        let mut last = error.to_string();
        while let Some(error) = cause {
            last = error.to_string();
            cause = error.source();
        }
        text.push_str(": ");
        text.push_str(&last);
        if last.contains("certificate") || last.contains("UnknownIssuer") {
            text.push_str("; name its certificate with --ca-file, or GANTRY_CA_FILE");
        }
        Failure::new(Exit::Connection, text)
    }

    /// GET a JSON document.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None).await
    }

    /// POST a JSON document.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// PUT a JSON document.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// PATCH a JSON document.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, None).await
    }

    /// DELETE of what a JSON document names.
    pub async fn delete_with(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, Some(body)).await
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let response = self.send(method, path, body).await?;
        response
            .json()
            .await
            .map_err(|error| Failure::new(Exit::Server, format!("the answer to {path} is not JSON: {error}")))
    }

    /// A body of bytes as it arrives.
    pub async fn bytes(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Failure>> + use<>, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        Ok(response
            .bytes_stream()
            .map(|part| part.map_err(|error| Failure::new(Exit::Connection, error.to_string()))))
    }

    /// Server-sent events of a GET.
    pub async fn events(&self, path: &str) -> Result<impl Stream<Item = Event> + use<>, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        Ok(response.bytes_stream().eventsource().filter_map(|event| async move { event.ok() }))
    }

    /// Server-sent events of a GraphQL subscription.
    pub async fn subscribe(
        &self,
        query: &str,
        variables: Value,
    ) -> Result<impl Stream<Item = Event> + use<>, Failure> {
        let body = serde_json::json!({ "query": query, "variables": variables });
        let response = self.send(Method::POST, "/graphql/stream", Some(&body)).await?;
        Ok(response.bytes_stream().eventsource().filter_map(|event| async move { event.ok() }))
    }

    /// All items of a paged list, at most `most`.
    pub async fn items(&self, path: &str, most: usize) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut page = String::new();
        loop {
            let glue = if path.contains('?') { '&' } else { '?' };
            let at = if page.is_empty() { path.to_owned() } else { format!("{path}{glue}page-token={page}") };
            let mut answer = self.get(&at).await?;
            if let Some(Value::Array(found)) = answer.get_mut("items").map(Value::take) {
                items.extend(found);
            }
            match answer.get("next_page_token").and_then(Value::as_str) {
                Some(next) if items.len() < most => page = next.to_owned(),
                _ => break,
            }
        }
        items.truncate(most);
        Ok(items)
    }
}
