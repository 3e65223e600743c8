//! From a reference to a version and its text.

use compiler::{OrbError, OrbRef, OrbText, OrbVersion};
use ids::OrgId;
use sqlx::{PgConnection, Row, types::Json};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// The orb that a reference means now, for organisations that see their own private orbs and all public ones.
pub(crate) async fn resolve(
    conn: &mut PgConnection,
    reference: &OrbRef,
    orgs: &[OrgId],
) -> sqlx::Result<Result<OrbText, OrbError>> {
    let OrbRef::Registry { namespace, name, version } = reference else {
        return Ok(Err(OrbError::Forbidden(super::URL_ORBS.to_owned())));
    };
    let orgs: Vec<Uuid> = orgs.iter().map(|org| org.uuid()).collect();
    let (numbers, tag) = pattern(version);
    let row = sqlx::query(
        "SELECT v.version, v.digest, v.pins, s.source
         FROM pipelines.orb_namespaces n
         JOIN pipelines.orbs o ON o.namespace_id = n.id
         JOIN pipelines.orb_versions v ON v.orb_id = o.id
         JOIN pipelines.orb_sources s ON s.digest = v.digest
         WHERE n.name = $1 AND o.name = $2 AND (NOT o.is_private OR n.org_id = ANY ($3))
            AND CASE WHEN $4::text IS NULL
                THEN v.major IS NOT NULL AND ($5::bigint IS NULL OR v.major = $5)
                    AND ($6::bigint IS NULL OR v.minor = $6) AND ($7::bigint IS NULL OR v.patch = $7)
                ELSE v.version = $4 END
            AND (v.major IS NOT NULL OR v.created_at > now() - make_interval(days => $8))
         ORDER BY v.major DESC, v.minor DESC, v.patch DESC LIMIT 1",
    )
    .bind(namespace)
    .bind(name)
    .bind(&orgs)
    .bind(tag)
    .bind(numbers[0])
    .bind(numbers[1])
    .bind(numbers[2])
    .bind(DEV_DAYS)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(row) = row {
        let version: String = row.try_get("version")?;
        let text: String = row.try_get("source")?;
        return Ok(Ok(OrbText {
            resolved: format!("{namespace}/{name}@{version}"),
            text: Arc::from(text),
            digest: row.try_get("digest")?,
            pins: row.try_get::<Json<BTreeMap<String, String>>, _>("pins")?.0,
        }));
    }
    Ok(Err(OrbError::NotFound(hint(conn, namespace, name, &orgs).await?)))
}

/// Days that a dev version can be used (config-language §18.1).
const DEV_DAYS: i32 = 90;

/// Numbers that a version must have, or the tag that it must be.
fn pattern(version: &OrbVersion) -> ([Option<i64>; 3], Option<String>) {
    // A number beyond what is stored is a version that does not exist.
    let number = |n: &u64| Some(i64::try_from(*n).unwrap_or(i64::MAX));
    match version {
        OrbVersion::Exact(a, b, c) => ([number(a), number(b), number(c)], None),
        OrbVersion::Minor(a, b) => ([number(a), number(b), None], None),
        OrbVersion::Major(a) => ([number(a), None, None], None),
        OrbVersion::Volatile => ([None; 3], None),
        OrbVersion::Dev(tag) => ([None; 3], Some(format!("dev:{tag}"))),
    }
}

/// What there is instead.
async fn hint(
    conn: &mut PgConnection,
    namespace: &str,
    name: &str,
    orgs: &[Uuid],
) -> sqlx::Result<Option<String>> {
    let versions: Vec<String> = sqlx::query_scalar(
        "SELECT v.version FROM pipelines.orb_namespaces n
         JOIN pipelines.orbs o ON o.namespace_id = n.id
         JOIN pipelines.orb_versions v ON v.orb_id = o.id
         WHERE n.name = $1 AND o.name = $2 AND (NOT o.is_private OR n.org_id = ANY ($3)) AND v.major IS NOT NULL
         ORDER BY v.major DESC, v.minor DESC, v.patch DESC LIMIT 5",
    )
    .bind(namespace)
    .bind(name)
    .bind(orgs)
    .fetch_all(&mut *conn)
    .await?;
    if !versions.is_empty() {
        return Ok(Some(format!(
            "the newest versions of {namespace}/{name} here are {}",
            versions.join(", ")
        )));
    }
    Ok(Some(format!("import it with `gantry orb import {namespace}/{name}`, or publish it on this server")))
}
