//! HTTP to the suite. A Unix socket and plain TCP are spoken directly, which keeps the start of a task free of
//! the cost of a TLS client; `https` goes through one.

use agent_api::{Problem, stores::Upload};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request,
    client::conn::http1::SendRequest,
    header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    sync::{Mutex, OnceLock},
    time::Duration,
};
use tokio::net::{TcpStream, UnixStream};

/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
const CONNECT: Duration = Duration::from_secs(3);

/// Why a request gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the suite cannot be reached: {0}")]
    Transport(String),
    #[error("{status} {}: {}", problem.code, problem.message)]
    Problem { status: u16, problem: Problem },
}

impl Failure {
    /// Whether the same request may succeed later. A fence token that has run out is renewed meanwhile.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Transport(_) => true,
            Self::Problem { status, .. } => matches!(status, 401 | 408 | 421 | 425 | 429 | 500..=599),
        }
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Transport(_) => None,
            Self::Problem { status, .. } => Some(*status),
        }
    }

    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Transport(_) => "",
            Self::Problem { problem, .. } => &problem.code,
        }
    }

    pub(crate) fn next_offset(&self) -> Option<u64> {
        match self {
            Self::Transport(_) => None,
            Self::Problem { problem, .. } => problem.next_offset,
        }
    }
}

enum Endpoint {
    Unix(String),
    Tcp { authority: String, prefix: String },
    Tls { base: String, client: reqwest::Client },
}

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) struct Client {
    endpoint: Endpoint,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) bearer: Option<&'a str>,
    pub(crate) header: Option<(&'static str, String)>,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
}

impl Client {
    pub(crate) fn new(endpoint: &str) -> anyhow::Result<Self> {
        let endpoint = if let Some(path) = endpoint.strip_prefix("unix:") {
            Endpoint::Unix(path.to_owned())
        } else if let Some(rest) = endpoint.strip_prefix("http://") {
            let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let authority =
                if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
            let prefix = prefix.trim_end_matches('/');
            let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
            Endpoint::Tcp { authority, prefix }
        } else if endpoint.starts_with("https://") {
            // Fails only when one is installed already.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let client = reqwest::Client::builder().connect_timeout(CONNECT).build()?;
            Endpoint::Tls { base: endpoint.trim_end_matches('/').to_owned(), client }
        } else {
            anyhow::bail!("the endpoint {endpoint} is neither unix:, http:// nor https://");
        };
        Ok(Self { endpoint, idle: Mutex::default() })
    }

    /// Whether the suite is on this machine: then retries may be quick.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.endpoint, Endpoint::Unix(_))
    }

    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Bytes, Failure> {
        let timeout = call.timeout;
        let sent = async {
            match &self.endpoint {
                Endpoint::Tls { base, client } => send_tls(base, client, call).await,
                _ => {
                    let Call { method, path, bearer, header, body, .. } = call;
                    let header = [("content-type", "application/json".to_owned())].into_iter().chain(header);
                    self.send(method, path, bearer, header, whole(body)).await
                }
            }
        };
        judged(timeout, sent).await
    }

    /// Puts bytes where the suite said: a path of its own endpoint, or the URL of a store. `size` is what the body
    /// has.
    pub(crate) async fn put(
        &self,
        place: &Upload,
        size: u64,
        body: Body,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let url = &place.url;
        let sent = async {
            match (&self.endpoint, is_relative(url)) {
                (Endpoint::Unix(_) | Endpoint::Tcp { .. }, true) => {
                    let header = [("content-length", size.to_string())];
                    self.send(Method::PUT, url, None, header, body).await
                }
                (endpoint, _) => put_tls(&endpoint.absolute(url), &place.headers, size, body).await,
            }
        };
        judged(timeout, sent).await.map(drop)
    }

    /// Gets the bytes that the suite named in the same way.
    pub(crate) async fn get(&self, url: &str, timeout: Duration) -> Result<Bytes, Failure> {
        let sent = async {
            match (&self.endpoint, is_relative(url)) {
                (Endpoint::Unix(_) | Endpoint::Tcp { .. }, true) => {
                    self.send(Method::GET, url, None, [], whole(Bytes::new())).await
                }
                (endpoint, _) => get_tls(&endpoint.absolute(url)).await,
            }
        };
        judged(timeout, sent).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        headers: impl IntoIterator<Item = (&'static str, String)>,
        body: Body,
    ) -> Result<(u16, Bytes), String> {
        let (host, prefix) = match &self.endpoint {
            Endpoint::Tcp { authority, prefix } => (authority.as_str(), prefix.as_str()),
            _ => ("localhost", ""),
        };
        let mut request =
            Request::builder().method(method).uri(format!("{prefix}{path}")).header("host", host);
        if let Some(token) = bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|e| e.to_string())?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|e| e.to_string())?;
        let mut sender = match self.take_idle() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        self.idle().push(sender);
        Ok((status, body))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Body>>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle();
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let connected = async {
            match &self.endpoint {
                Endpoint::Unix(path) => {
                    handshake(UnixStream::connect(path).await.map_err(|e| format!("{path}: {e}"))?).await
                }
                Endpoint::Tcp { authority, .. } => {
                    let stream =
                        TcpStream::connect(authority).await.map_err(|e| format!("{authority}: {e}"))?;
                    // Requests are small, and each is waited for.
                    let _ = stream.set_nodelay(true);
                    handshake(stream).await
                }
                Endpoint::Tls { .. } => Err("TLS connections are not made here".to_owned()),
            }
        };
        tokio::time::timeout(CONNECT, connected).await.map_err(|_| "no connection in time".to_owned())?
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Its error comes out of the request that it carries.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// What an answer means.
async fn judged(
    timeout: Duration,
    sent: impl Future<Output = Result<(u16, Bytes), String>>,
) -> Result<Bytes, Failure> {
    let (status, body) = tokio::time::timeout(timeout, sent)
        .await
        .map_err(|_| Failure::Transport(format!("no answer within {timeout:?}")))?
        .map_err(Failure::Transport)?;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        code: String::new(),
        message: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
        next_offset: None,
    });
    Err(Failure::Problem { status, problem })
}

fn is_relative(url: &str) -> bool {
    url.starts_with('/')
}

impl Endpoint {
    /// The URL of a path of this endpoint.
    fn absolute(&self, url: &str) -> String {
        match self {
            Self::Tls { base, .. } if is_relative(url) => format!("{base}{url}"),
            _ => url.to_owned(),
        }
    }
}

/// A client for stores, which have their own addresses.
fn store_client() -> Result<reqwest::Client, String> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    // Fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().connect_timeout(CONNECT).build().map_err(|e| e.to_string())?;
    Ok(CLIENT.get_or_init(|| client).clone())
}

async fn put_tls(
    url: &str,
    headers: &[(String, String)],
    size: u64,
    body: Body,
) -> Result<(u16, Bytes), String> {
    let stream = http_body_util::BodyDataStream::new(body);
    let sent = store_client()?.put(url).body(reqwest::Body::wrap_stream(stream));
    // Theirs may name the length too: it is not to be sent twice.
    let mut all = HeaderMap::new();
    all.insert(CONTENT_LENGTH, size.into());
    for (name, value) in headers {
        let name = HeaderName::try_from(name).map_err(|e| e.to_string())?;
        all.insert(name, HeaderValue::try_from(value).map_err(|e| e.to_string())?);
    }
    answered(sent.headers(all).send().await).await
}

async fn get_tls(url: &str) -> Result<(u16, Bytes), String> {
    answered(store_client()?.get(url).send().await).await
}

/// Without the URL in errors: it is a permission.
async fn answered(sent: reqwest::Result<reqwest::Response>) -> Result<(u16, Bytes), String> {
    let response = sent.map_err(|e| e.without_url().to_string())?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await.map_err(|e| e.without_url().to_string())?))
}

async fn send_tls(base: &str, client: &reqwest::Client, call: Call<'_>) -> Result<(u16, Bytes), String> {
    let mut request = client
        .request(call.method, format!("{base}{}", call.path))
        .header("content-type", "application/json")
        .body(call.body);
    if let Some(token) = call.bearer {
        request = request.bearer_auth(token);
    }
    if let Some((name, value)) = call.header {
        request = request.header(name, value);
    }
    answered(request.send().await).await
}
