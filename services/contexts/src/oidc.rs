//! OIDC tokens of jobs (execution §21, security §4.4): RS256 under keys that only this service opens.
//!
//! Two keys at least are always published, the one that signs and the one that will: whoever verifies and keeps the set
//! for a day knows a key before its first token.

use crate::{State, delivery::Job};
use anyhow::{Context, anyhow};
use aws_lc_rs::{
    encoding::AsDer,
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use bus::once::Failure;
use chrono::{DateTime, TimeDelta, Utc};
use contracts::{Request, contexts::GetJwks};
use eventstore::Key;
use ids::{ContextId, JobId, OidcKeyId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use moka::future::Cache;
use secrets::Zeroizing;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a key signs.
const SIGNS: TimeDelta = TimeDelta::days(30);
/// How long a key is published after its last token: a day of overlap, and the token's life.
const KEPT: TimeDelta = TimeDelta::hours(25);
/// How long a token is valid.
pub(crate) const LIFE: TimeDelta = TimeDelta::hours(1);
/// How long an opened key is kept: far less than it goes on to be published after its last token.
const OPEN: Duration = Duration::from_secs(30);
/// Between two looks at the keys' ages.
const LOOK: Duration = Duration::from_secs(3600);
/// How long the first key takes at most.
const FIRST_KEY: Duration = Duration::from_secs(5);
/// Between two tries that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Which form of token: the second one names origin and ref in its subject.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    V1,
    V2,
}

/// Whose token it is.
pub(crate) struct Subject<'a> {
    pub(crate) job_id: JobId,
    pub(crate) job: &'a Job,
    pub(crate) contexts: &'a [ContextId],
}

/// The claims of a token, made at `now`.
pub(crate) fn claims(
    base: &str,
    subject: &Subject<'_>,
    form: Form,
    audience: &[String],
    root_issuer: bool,
    now: DateTime<Utc>,
) -> Value {
    let job = subject.job;
    let user = job.acting_user.map_or(Uuid::nil(), |user| user.uuid());
    let mut sub = format!("org/{}/project/{}/user/{user}", job.org, job.project);
    let fact = |name: &str| job.claims.get(name).and_then(Value::as_str).unwrap_or_default();
    if form == Form::V2 {
        sub.push_str(&format!("/vcs-origin/{}/vcs-ref/{}", fact("vcs-origin"), fact("vcs-ref")));
    }
    let issuer = if root_issuer { base.to_owned() } else { issuer(base, &job.org.to_string()) };
    let audience = match audience {
        [] => json!(job.org.to_string()),
        [one] => json!(one),
        many => json!(many),
    };
    let mut all = Map::new();
    let mut set = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
    set("iss", issuer.into());
    set("aud", audience);
    set("sub", sub.into());
    set("iat", now.timestamp().into());
    set("nbf", now.timestamp().into());
    set("exp", (now + LIFE).timestamp().into());
    set("jti", OidcKeyId::new().to_string().into());
    let mut own = |name: &str, value: Value| set(&format!("oidc.circleci.com/{name}"), value);
    own("org-id", job.org.to_string().into());
    own("project-id", job.project.to_string().into());
    own("job-id", subject.job_id.to_string().into());
    own("context-ids", subject.contexts.iter().map(ToString::to_string).collect::<Vec<_>>().into());
    own("ssh-rerun", false.into());
    for (name, value) in &job.claims {
        own(name, value.clone());
    }
    Value::Object(all)
}

/// The issuer of an organisation's tokens.
fn issuer(base: &str, org: &str) -> String {
    format!("{base}/org/{org}")
}

/// The key whose time it is, opened.
pub(crate) struct Signer {
    id: Uuid,
    pem: Zeroizing<Vec<u8>>,
}

/// The key that signs, kept open for some seconds: every job needs it, and to have it opened is a request to whoever
/// keeps the keys, on the way of the job. Once those are out of reach no token is signed [`OPEN`] later.
#[derive(Clone)]
pub(crate) struct Signers(Cache<(), Arc<Signer>>);

impl Signers {
    pub(crate) fn new() -> Self {
        Self(Cache::builder().max_capacity(1).time_to_live(OPEN).build())
    }
}

/// The key that signs now.
pub(crate) async fn signer(state: &State) -> anyhow::Result<Arc<Signer>> {
    let open = state.signers.0.try_get_with((), async {
        let row: Option<(Uuid, Vec<u8>)> = sqlx::query_as(
            "SELECT id, sealed FROM contexts.oidc_keys WHERE signs_from <= now() ORDER BY signs_from DESC LIMIT 1",
        )
        .fetch_optional(state.store.pool())
        .await?;
        let (id, sealed) = row.context("no key signs OIDC tokens")?;
        let pem = state.secrets.decrypt(&label(id), &sealed).await?;
        anyhow::Ok(Arc::new(Signer { id, pem }))
    });
    open.await.map_err(|error| anyhow!("{error:#}"))
}

impl Signer {
    /// Signs claims.
    pub(crate) fn sign(&self, claims: &[Value]) -> anyhow::Result<Vec<String>> {
        let key = EncodingKey::from_rsa_pem(&self.pem)?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.id.to_string());
        claims.iter().map(|claims| Ok(jsonwebtoken::encode(&header, claims, &key)?)).collect()
    }
}

pub(crate) async fn jwks(state: &State, _: &Request, _: GetJwks) -> Result<Value, Failure> {
    let keys: Vec<Value> =
        sqlx::query_scalar("SELECT public_jwk FROM contexts.oidc_keys ORDER BY signs_from DESC")
            .fetch_all(state.store.pool())
            .await?;
    Ok(json!({ "keys": keys }))
}

/// Waits until a key signs: at the first start that takes a moment.
pub(crate) async fn ready(state: &State) -> anyhow::Result<()> {
    let mut signs = state.signs.clone();
    let waited = tokio::time::timeout(FIRST_KEY, signs.wait_for(|signs| *signs)).await;
    waited.context("no key signs OIDC tokens yet")?.context("the service stops")?;
    Ok(())
}

/// Keeps the keys fresh until the service stops.
pub(crate) async fn keep(state: State, signs: watch::Sender<bool>, stop: CancellationToken) {
    loop {
        let pause = match refresh(&state, &signs, state.store.now()).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the keys of OIDC tokens could not be renewed");
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes the keys that are missing, and forgets those that no valid token names.
async fn refresh(state: &State, signs: &watch::Sender<bool>, now: DateTime<Utc>) -> anyhow::Result<()> {
    loop {
        let mut tx = state.store.begin(&[Key::new("oidc_keys", Uuid::nil())]).await?;
        let starts: Vec<DateTime<Utc>> =
            sqlx::query_scalar("SELECT signs_from FROM contexts.oidc_keys ORDER BY signs_from")
                .fetch_all(tx.conn())
                .await?;
        let rotation = rotation(&starts, now);
        sqlx::query("DELETE FROM contexts.oidc_keys WHERE signs_from = ANY($1)")
            .bind(&rotation.forget)
            .execute(tx.conn())
            .await?;
        signs.send_replace(starts.first().is_some_and(|first| *first <= now));
        let Some(from) = rotation.make else { return Ok(tx.commit().await?) };
        let id = OidcKeyId::new();
        let (pem, public) = tokio::task::spawn_blocking(move || make(id)).await??;
        let sealed = state.secrets.encrypt(&label(id.uuid()), pem.as_bytes()).await?;
        let key_version = i64::from(state.secrets.version_of(&sealed)?);
        sqlx::query(
            "INSERT INTO contexts.oidc_keys (id, public_jwk, sealed, key_version, signs_from)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.uuid())
        .bind(public)
        .bind(sealed)
        .bind(key_version)
        .bind(from)
        .execute(tx.conn())
        .await?;
        tx.commit().await?;
    }
}

/// What is to be done about the keys of OIDC tokens; each is named by when it begins to sign.
#[derive(Debug, PartialEq, Eq)]
pub struct Rotation {
    /// No valid token names these.
    pub forget: Vec<DateTime<Utc>>,
    /// From when on the next key that is made signs.
    pub make: Option<DateTime<Utc>>,
}

/// Decides it for keys that sign from `starts` on, oldest first (security §4.4).
pub fn rotation(starts: &[DateTime<Utc>], now: DateTime<Utc>) -> Rotation {
    // A key's last token is made when its successor begins.
    let forget = starts.windows(2).filter(|pair| pair[1] + KEPT < now).map(|pair| pair[0]).collect();
    let make = match starts.last() {
        None => Some(now),
        // After a long stop too the next one is published for a while before it signs.
        Some(last) if *last <= now => Some((*last + SIGNS).max(now + KEPT)),
        Some(_) => None,
    };
    Rotation { forget, make }
}

/// A new key: PEM, and its public half as others read it.
fn make(id: OidcKeyId) -> anyhow::Result<(Zeroizing<String>, Value)> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("no RSA key could be made"))?;
    let der = pair.as_der().map_err(|_| anyhow!("the RSA key cannot be written"))?;
    let body = Zeroizing::new(B64.encode(der.as_ref()));
    let mut pem = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
    for line in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line)?);
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    let mut public = Jwk::from_encoding_key(&EncodingKey::from_rsa_pem(pem.as_bytes())?, Algorithm::RS256)?;
    public.common.key_id = Some(id.to_string());
    public.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
    Ok((pem, serde_json::to_value(public)?))
}

/// What a private half is bound to.
pub(crate) fn label(id: Uuid) -> String {
    secrets::label(&["oidc_key", &id.to_string()])
}
