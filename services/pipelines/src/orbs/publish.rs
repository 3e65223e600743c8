//! New versions. A published one never changes.

use super::{failed, queries, validate};
use crate::State;
use bus::once::{Begun, Failure, Once};
use compiler::{OrbRef, OrbVersion as Wanted};
use contracts::{
    Refusal, Request,
    orbs::{Orb, OrbKey, OrbPublished, OrbVersion, PromoteOrb, PublishOrb},
};
use eventstore::{Key, Tx};
use ids::OrbVersionId;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Row, types::Json};
use std::collections::BTreeMap;

/// Largest source in bytes.
const MAX_SOURCE: usize = 1 << 20;

pub(crate) async fn publish(
    state: &State,
    request: &Request,
    ask: PublishOrb,
) -> Result<OrbVersion, Failure> {
    let version = version(&ask.version)?;
    let source = blobs::text::receive(state.blobs.as_ref(), ask.source).await.map_err(failed)?;
    if source.len() > MAX_SOURCE {
        let message = format!("the source has {} bytes; at most {MAX_SOURCE} are allowed", source.len());
        return Err(Refusal::new("invalid", message).into());
    }
    let orb = orb(state, &ask.orb).await?;
    let checked = validate::check(state, &source, &[orb.namespace.org_id]).await.map_err(failed)?;
    let imports = match checked {
        Ok(imports) => imports,
        Err(errors) => return Err(Refusal::new("invalid", errors.join("\n")).into()),
    };
    let mut once = match Once::begin(&state.store, request, &[lock(&orb)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let pins = freeze(once.tx.conn(), &orb, imports).await?;
    let made = add(&mut once.tx, request, &orb, &version, &source, pins).await?;
    once.commit(made).await
}

pub(crate) async fn promote(
    state: &State,
    request: &Request,
    ask: PromoteOrb,
) -> Result<OrbVersion, Failure> {
    let (from, to) = (version(&ask.from)?, version(&ask.to)?);
    if !matches!(from, Wanted::Dev(_)) || !matches!(to, Wanted::Exact(..)) {
        let message = format!("a dev version becomes a published one: {from} cannot become {to}");
        return Err(Refusal::new("invalid", message).into());
    }
    let orb = orb(state, &ask.orb).await?;
    let mut once = match Once::begin(&state.store, request, &[lock(&orb)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let (namespace, name) = orb.name.split_once('/').unwrap_or_default();
    let reference =
        OrbRef::Registry { namespace: namespace.to_owned(), name: name.to_owned(), version: from };
    let text = super::resolve(once.tx.conn(), &reference, &[orb.namespace.org_id])
        .await?
        .map_err(|_| Refusal::not_found(&format!("Orb {reference}")))?;
    let made = add(&mut once.tx, request, &orb, &to, &text.text, text.pins).await?;
    once.commit(made).await
}

async fn orb(state: &State, key: &OrbKey) -> Result<Orb, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    Ok(queries::find(&mut conn, key, None, 1).await?.ok_or_else(|| Refusal::not_found("Orb"))?)
}

fn lock(orb: &Orb) -> Key {
    Key::new(queries::KIND, orb.id.uuid())
}

/// `1.2.3` or `dev:…`: what can be published.
fn version(text: &str) -> Result<Wanted, Refusal> {
    match text.parse() {
        Ok(version @ (Wanted::Exact(..) | Wanted::Dev(_))) => Ok(version),
        _ => {
            let message = format!("\"{text:.100}\" cannot be published: a version is `1.2.3` or `dev:name`");
            Err(Refusal::new("invalid", message))
        }
    }
}

/// The exact version of each import as of now (config-language §18.2).
async fn freeze(
    conn: &mut PgConnection,
    orb: &Orb,
    imports: Vec<OrbRef>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut pins = BTreeMap::new();
    for reference in imports {
        let found = super::resolve(&mut *conn, &reference, &[orb.namespace.org_id])
            .await?
            .map_err(|error| Refusal::new("invalid", format!("{reference}: {error}")))?;
        pins.insert(reference.to_string(), found.resolved);
    }
    Ok(pins)
}

async fn add(
    tx: &mut Tx,
    request: &Request,
    orb: &Orb,
    version: &Wanted,
    source: &str,
    pins: BTreeMap<String, String>,
) -> Result<OrbVersion, Failure> {
    let digest = hex::encode(Sha256::digest(source));
    let held = sqlx::query(
        "SELECT id, version, digest, created_at FROM pipelines.orb_versions WHERE orb_id = $1 AND version = $2",
    )
    .bind(orb.id.uuid())
    .bind(version.to_string())
    .fetch_optional(tx.conn())
    .await?;
    if let (Some(held), Wanted::Exact(..)) = (&held, version) {
        if held.try_get::<String, _>("digest")? == digest {
            return Ok(queries::version_of(held)?);
        }
        let message = format!("{}@{version} is published already and never changes", orb.name);
        return Err(Refusal::new("exists", message).into());
    }
    sqlx::query("INSERT INTO pipelines.orb_sources (digest, source) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(&digest)
        .bind(source)
        .execute(tx.conn())
        .await?;
    let numbers = match version {
        Wanted::Exact(a, b, c) => [number(*a)?, number(*b)?, number(*c)?].map(Some),
        _ => [None; 3],
    };
    let row = sqlx::query(
        "INSERT INTO pipelines.orb_versions (id, orb_id, version, major, minor, patch, digest, pins)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (orb_id, version) DO UPDATE SET digest = excluded.digest, pins = excluded.pins,
            created_at = now()
         RETURNING id, version, digest, created_at",
    )
    .bind(OrbVersionId::new().uuid())
    .bind(orb.id.uuid())
    .bind(version.to_string())
    .bind(numbers[0])
    .bind(numbers[1])
    .bind(numbers[2])
    .bind(&digest)
    .bind(Json(&pins))
    .fetch_one(tx.conn())
    .await?;
    let version = queries::version_of(&row)?;
    let body = OrbPublished { version: version.clone(), pins };
    tx.append(&[queries::event(request, orb.id, orb.namespace.org_id, &body)]).await?;
    Ok(version)
}

fn number(n: u64) -> Result<i64, Refusal> {
    i64::try_from(n).map_err(|_| Refusal::new("invalid", format!("{n} is too large for a version")))
}
