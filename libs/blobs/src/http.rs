//! The endpoint `/blobs/…` that answers to signed URLs of the file system adapter.

use crate::{Body, Digest, Error, FsBlobs, Key, Method, Put, fs::Announced};
use axum::{
    Json, Router,
    body::Body as HttpBody,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::{io, ops::Range};

#[derive(Deserialize)]
struct Signed {
    size: Option<u64>,
    sha256: Option<String>,
    name: Option<String>,
    expires: i64,
    signature: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    code: &'a str,
    message: String,
}

fn answer(status: StatusCode, code: &str, message: impl Into<String>) -> Response {
    (status, Json(Answer { code, message: message.into() })).into_response()
}

fn refused() -> Response {
    answer(
        StatusCode::FORBIDDEN,
        "signature_invalid",
        "the URL is altered, expired, or for another operation",
    )
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = match &self {
            Self::Key(_) => (StatusCode::BAD_REQUEST, "key_invalid"),
            Self::Missing(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Mismatch { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "checksum_mismatch"),
            Self::Range { size, .. } => {
                let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
            }
            Self::Damaged(_) | Self::Io(_) => {
                // Paths and causes are for the operator, not for who holds a URL.
                tracing::error!(error = %self, "blob request failed");
                return answer(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", "the store failed");
            }
        };
        answer(status, code, self.to_string())
    }
}

impl FsBlobs {
    /// Routes that answer to the URLs of [`crate::Blobs::sign`].
    pub fn router(&self) -> Router {
        Router::new()
            .route("/blobs/{*key}", routing::get(get).put(put))
            .layer(DefaultBodyLimit::disable()) // the signed size is the limit
            .with_state(self.clone())
    }
}

/// One range of the header; anything that we do not serve as a range is served whole, as the standard allows.
fn range(headers: &HeaderMap, size: u64) -> Option<Range<u64>> {
    let spec = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        // A suffix of nothing cannot be satisfied; a range after the end says so.
        return Some(if count == 0 { size + 1..size + 1 } else { size.saturating_sub(count)..size });
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1) };
    // A range of an empty body or past the end is refused by the store.
    if first >= size { Some(size + 1..size + 1) } else { (first < end).then_some(first..end) }
}

/// How a blob is served: always to be saved, whatever it is (security §9.3); under a name if there is one (RFC 6266).
pub fn disposition(name: Option<&str>) -> String {
    let Some(name) = name else { return "attachment".to_owned() };
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("attachment; filename*=UTF-8''{encoded}")
}

async fn get(
    State(blobs): State<FsBlobs>,
    Path(key): Path<String>,
    Query(signed): Query<Signed>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let key = Key::new(key)?;
    let allowed = match &signed.name {
        Some(name) => blobs.allows_download(&key, name, signed.expires, &signed.signature),
        None => blobs.allows(&key, Method::Get, signed.expires, &signed.signature),
    };
    if !allowed {
        return Ok(refused());
    }
    let name = signed.name.and_then(|name| String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok());
    let opened = blobs.open_blob(&key).await?.ok_or_else(|| Error::Missing(key.clone()))?;
    let meta = opened.1;
    let wanted = range(&headers, meta.size);
    let partial = wanted.is_some();
    let blob = FsBlobs::read(&key, opened, wanted)?;
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_DISPOSITION, disposition(name.as_deref()))
        .header(header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'")
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{}\"", hex::encode(meta.sha256)))
        .header(header::CONTENT_LENGTH, blob.range.end - blob.range.start);
    let response = if partial {
        let (first, last) = (blob.range.start, blob.range.end.saturating_sub(1));
        response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", meta.size))
    } else {
        response.status(StatusCode::OK)
    };
    response.body(HttpBody::from_stream(blob.body)).map_err(|error| io::Error::other(error).into())
}

async fn put(
    State(blobs): State<FsBlobs>,
    Path(key): Path<String>,
    Query(signed): Query<Signed>,
    body: HttpBody,
) -> Result<Response, Error> {
    let key = Key::new(key)?;
    let digest: Option<Digest> =
        signed.sha256.as_deref().and_then(|text| hex::decode(text).ok()?.try_into().ok());
    let (Some(size), Some(sha256)) = (signed.size, digest) else { return Ok(refused()) };
    if !blobs.allows(&key, Method::Put { size, sha256 }, signed.expires, &signed.signature) {
        return Ok(refused());
    }
    let body: Body = body.into_data_stream().map(|piece| piece.map_err(io::Error::other)).boxed();
    let put = blobs.store(&key, body, Announced { size: Some(size), sha256 }).await?;
    Ok(match put {
        Put::Stored(_) => answer(StatusCode::CREATED, "stored", "stored"),
        Put::AlreadyExists(_) => {
            answer(StatusCode::OK, "already_exists", "an earlier writer was first; nothing changed")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blobs, body, digest};
    use axum::http::Request;
    use chrono::{TimeDelta, Utc};
    use tower::ServiceExt;

    async fn send(
        blobs: &FsBlobs,
        method: &str,
        url: &str,
        range: Option<&str>,
        content: &[u8],
    ) -> (u16, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let request = request.body(HttpBody::from(content.to_vec())).unwrap();
        let response = blobs.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn signed_urls_allow_what_they_say_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = FsBlobs::open(folder.path(), &[[1u8; 32]]).await.unwrap();
        let key = Key::new("artifacts/one").unwrap();
        let (later, past) = (Utc::now() + TimeDelta::minutes(5), Utc::now() - TimeDelta::seconds(2));
        let method = Method::Put { size: 5, sha256: digest(b"hello") };
        let url = blobs.sign(&key, method, later).url;

        assert_eq!(
            send(&blobs, "PUT", &blobs.sign(&key, method, past).url, None, b"hello").await.0,
            403,
            "expired"
        );
        for (from, to) in
            [("one", "two"), ("size=5", "size=6"), ("sha256=2", "sha256=3"), ("expires=", "expires=9")]
        {
            let altered = url.replacen(from, to, 1);
            assert_ne!(altered, url);
            assert_eq!(send(&blobs, "PUT", &altered, None, b"hello").await.0, 403, "{altered}");
        }
        assert_eq!(send(&blobs, "GET", &url, None, b"").await.0, 403, "a URL to write does not read");
        assert_eq!(send(&blobs, "PUT", &url, None, b"hellO").await.0, 422);
        assert_eq!(send(&blobs, "PUT", &url, None, b"hello!").await.0, 422);
        assert_eq!(blobs.head(&key).await.unwrap(), None, "nothing wrong became visible");
        assert_eq!(send(&blobs, "PUT", &url, None, b"hello").await.0, 201);
        assert_eq!(send(&blobs, "PUT", &url, None, b"hello").await.0, 200, "a repeat changes nothing");
        assert_eq!(send(&blobs, "GET", "/blobs/a/../b?expires=1&signature=x", None, b"").await.0, 400);

        let url = blobs.sign(&key, Method::Get, later).url;
        assert_eq!(send(&blobs, "GET", &url, None, b"").await, (200, b"hello".to_vec()));
        assert_eq!(send(&blobs, "GET", &url, Some("bytes=1-2"), b"").await, (206, b"el".to_vec()));
        assert_eq!(send(&blobs, "GET", &url, Some("bytes=3-"), b"").await, (206, b"lo".to_vec()));
        assert_eq!(send(&blobs, "GET", &url, Some("bytes=-2"), b"").await, (206, b"lo".to_vec()));
        assert_eq!(send(&blobs, "GET", &url, Some("bytes=5-"), b"").await.0, 416);

        // While the key is replaced, what the older one signed is good; afterwards no more.
        let both = FsBlobs::open(folder.path(), &[[2u8; 32], [1u8; 32]]).await.unwrap();
        assert_eq!(send(&both, "GET", &url, None, b"").await.0, 200);
        let new = FsBlobs::open(folder.path(), &[[2u8; 32]]).await.unwrap();
        assert_eq!(send(&new, "GET", &url, None, b"").await.0, 403);
        assert_eq!(send(&new, "GET", &both.sign(&key, Method::Get, later).url, None, b"").await.0, 200);

        let url = blobs.sign_download(&key, later, "ü \"x\".html");
        let request = Request::builder().uri(&url).body(HttpBody::empty()).unwrap();
        let response = blobs.router().oneshot(request).await.unwrap();
        assert_eq!(
            response.headers()[header::CONTENT_DISPOSITION],
            "attachment; filename*=UTF-8''%C3%BC%20%22x%22.html"
        );
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(send(&blobs, "GET", &url.replacen("name=", "name=A", 1), None, b"").await.0, 403);
        assert_eq!(send(&blobs, "GET", &url.replacen("name=", "other=", 1), None, b"").await.0, 403);
    }

    #[tokio::test]
    async fn what_a_crash_left_half_written_is_swept_and_was_never_visible() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = FsBlobs::open(folder.path(), &[[1u8; 32]]).await.unwrap();
        let kept = Key::new("kept").unwrap();
        blobs.put(&kept, body("kept"), digest(b"kept")).await.unwrap();
        std::fs::write(folder.path().join("tmp/0198"), b"half").unwrap();
        drop(blobs);
        let blobs = FsBlobs::open(folder.path(), &[[1u8; 32]]).await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
        assert_eq!(blobs.get(&kept, None).await.unwrap().bytes().await.unwrap(), b"kept");
    }

    #[tokio::test]
    async fn the_file_system_adapter_keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        crate::contract::suite(&FsBlobs::open(folder.path(), &[[1u8; 32]]).await.unwrap()).await;
    }
}
