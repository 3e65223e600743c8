//! Paths and queries as clients spell them: a project's slug is three segments, or one that is
//! percent-encoded, or a UUID.

use axum::http::Uri;
use uuid::Uuid;

/// Decodes `%xx` (and `+` in queries); text that is not UTF-8 is no text of ours.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next()?, bytes.next()?);
                let digit = |c: u8| char::from(c).to_digit(16);
                out.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// A parameter of the query.
pub fn query(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key, true)? == name).then(|| decode(value, true))?
    })
}

/// A segment of a path, as URLs have it.
pub fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A number of the query.
pub fn number(uri: &Uri, name: &str) -> Option<u64> {
    query(uri, name)?.parse().ok()
}

/// Splits what follows `prefix` into the project's reference and the segments after it.
pub fn project(uri: &Uri, prefix: &str) -> Option<(String, Vec<String>)> {
    let rest = uri.path().strip_prefix(prefix)?;
    let mut parts = rest.split('/').map(|part| decode(part, false)).collect::<Option<Vec<_>>>()?;
    if parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    let first = parts.first()?;
    let taken = if first.contains('/') || Uuid::parse_str(first).is_ok() { 1 } else { 3 };
    if parts.len() < taken || parts.iter().any(String::is_empty) {
        return None;
    }
    let after = parts.split_off(taken);
    Some((parts.join("/"), after))
}

/// The ids in `circleci/<org>/<project>`, both base-58.
pub fn short_project(reference: &str) -> Option<Uuid> {
    let mut parts = reference.strip_prefix("circleci/")?.split('/');
    let (_, project) = (parts.next()?, parts.next()?);
    let bytes = bs58::decode(project).into_vec().ok()?;
    Uuid::from_slice(&bytes).ok()
}
