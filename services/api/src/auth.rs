//! Who is it? Every form in which clients send a token (api-v2 §0.2).

use crate::{
    error::Fail,
    state::{App, Holder, Intent},
};
use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, Method, Uri, header::AUTHORIZATION, request::Parts},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{Actor, domain::User};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub user: User,
    /// Whether the owner of tokens vouches for it now; without that nothing is changed.
    pub fresh: bool,
    /// `Idempotency-Key` of the request.
    pub idempotency_key: Option<String>,
    /// The same for everything that comes with one token; it does not tell which.
    pub session: String,
    /// Whether the organisation that the request is about lets it pass; asked once per request.
    pub passed: Arc<OnceCell<bool>>,
}

impl Caller {
    /// As messages name it.
    pub fn actor(&self) -> Actor {
        Actor::User { id: self.user.id }
    }

    /// From the headers of a request.
    pub async fn of(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<Self, Fail> {
        Self::who(app, headers, uri, Intent::Change).await
    }

    async fn who(app: &App, headers: &HeaderMap, uri: &Uri, intent: Intent) -> Result<Self, Fail> {
        let token = token(headers)
            .or_else(|| {
                let old = uri.path().starts_with("/api/v1.1/") || uri.path().starts_with("/artifacts/");
                old.then(|| query_token(uri))?
            })
            .ok_or_else(Fail::unauthenticated)?;
        let Holder { user, fresh } = app.holder(&token, intent).await?;
        let idempotency_key =
            headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
        let session = hex::encode(&Sha256::digest(&token)[..16]);
        Ok(Self { user, fresh, idempotency_key, session, passed: Arc::default() })
    }
}

impl<S> FromRequestParts<S> for Caller
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fail> {
        // An outer layer may have found it already.
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        // A document of GraphQL comes by POST, and mostly only reads; its mutations ask for more.
        let reads = matches!(parts.method, Method::GET | Method::HEAD) || parts.uri.path() == "/graphql";
        let intent = if reads { Intent::Read } else { Intent::Change };
        let app = App::from_ref(state);
        let caller = Self::who(&app, &parts.headers, &parts.uri, intent).await?;
        app.rates.request(caller.user.id, parts.extensions.get()).await?;
        parts.extensions.insert(caller.clone());
        Ok(caller)
    }
}

/// The token of a request's headers.
pub fn token(headers: &HeaderMap) -> Option<String> {
    let circle = headers.get("circle-token").and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(token) = circle.filter(|token| !token.is_empty()) {
        return Some(token.to_owned());
    }
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
            let pair = String::from_utf8(STANDARD.decode(pair.trim()).ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            Some(if password.is_empty() { user } else { password }.to_owned())
        }
        Some(_) => None,
        None => Some(value.to_owned()),
    }
    .filter(|token| !token.is_empty())
}

fn query_token(uri: &Uri) -> Option<String> {
    crate::path::query(uri, "circle-token")
}
