//! Variables of contexts and projects: written, listed by name, never read back.

use crate::{REQUEST_LABEL, State, rewrap};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    contexts::{
        ListVariables, RemoveVariable, Scope, SetVariable, VariableInfo, VariableRemoved, VariableSet,
    },
};
use eventstore::{Key, Tx};
use ids::{OrgId, Timestamp, UserId};
use secrets::Zeroizing;
use sqlx::PgConnection;
use uuid::Uuid;

/// Longest value in bytes.
const MAX_VALUE: usize = 32 * 1024;
/// Longest name in bytes.
const MAX_NAME: usize = 300;
/// Values rewrapped per transaction.
const REWRAP_BATCH: i64 = 100;

pub(crate) async fn set(state: &State, request: &Request, ask: SetVariable) -> Result<VariableInfo, Failure> {
    check_name(&ask.name)?;
    let value = unseal(state, &ask.sealed).await?;
    if value.is_empty() || value.len() > MAX_VALUE {
        return Err(Refusal::new("invalid", format!("a value has 1 to {MAX_VALUE} bytes")).into());
    }
    if std::str::from_utf8(&value).is_err() || value.contains(&0) {
        return Err(Refusal::new("invalid", "a value is UTF-8 text without NUL").into());
    }
    if state.refuse_unmaskable && matches!(ask.scope, Scope::Context(_)) && !masking::is_maskable(&value) {
        let message = format!(
            "output would show this value: what has fewer than {} bytes or is a word of logic cannot be masked, and contexts \
             take no such values here ([contexts] refuse_unmaskable); write it into the configuration if it is no secret",
            masking::MIN_LEN
        );
        return Err(Refusal::new("value_too_short_to_mask", message).into());
    }
    let place = Place::of(&ask.scope);
    // A value is sealed anew each time it is sent: a repeat is known by what it says, under a keyed digest.
    let mut known = request.clone();
    if let Some(sealed) = known.body.get_mut("sealed") {
        *sealed = B64.encode(state.keys.sign("variable repeat", &value)).into();
    }
    let mut once = match Once::begin(&state.store, &known, &[place.key()]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let org = place.org(&mut once.tx).await?;
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT version FROM contexts.variables WHERE scope = $1 AND scope_id = $2 AND name = $3",
    )
    .bind(place.scope)
    .bind(place.id)
    .bind(&ask.name)
    .fetch_optional(once.tx.conn())
    .await?;
    // A removed variable's versions may come again; what was sealed then is gone with its row.
    let version = last.unwrap_or(0) + 1;
    // The key store is local or answers in milliseconds, and nothing has been written yet.
    let sealed = state.secrets.encrypt(&place.label(&ask.name, version), &value).await.map_err(key_store)?;
    let key_version = state.secrets.version_of(&sealed).map_err(key_store)?;
    let fingerprint = fingerprint(state, &place, &value);
    let row: Row = sqlx::query_as(
        "INSERT INTO contexts.variables (scope, scope_id, name, version, sealed, key_version, fingerprint, updated_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (scope, scope_id, name) DO UPDATE SET version = excluded.version, sealed = excluded.sealed,
             key_version = excluded.key_version, fingerprint = excluded.fingerprint, updated_at = now(),
             updated_by = excluded.updated_by
         RETURNING name, fingerprint, version, created_at, updated_at, updated_by, last_used_at",
    )
    .bind(place.scope)
    .bind(place.id)
    .bind(&ask.name)
    .bind(version)
    .bind(&sealed)
    .bind(i64::from(key_version))
    .bind(&fingerprint)
    .bind(request.actor.user().map(|user| user.uuid()))
    .fetch_one(once.tx.conn())
    .await?;
    let body = VariableSet { name: ask.name };
    let mut event = NewEvent::new(place.aggregate, place.id, request.actor.clone(), &body);
    event.org_id = org;
    once.tx.append(&[event]).await?;
    once.commit(row.into()).await
}

pub(crate) async fn remove(state: &State, request: &Request, ask: RemoveVariable) -> Result<(), Failure> {
    let place = Place::of(&ask.scope);
    let mut once = match Once::begin(&state.store, request, &[place.key()]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let org = place.org(&mut once.tx).await?;
    let gone = sqlx::query("DELETE FROM contexts.variables WHERE scope = $1 AND scope_id = $2 AND name = $3")
        .bind(place.scope)
        .bind(place.id)
        .bind(&ask.name)
        .execute(once.tx.conn())
        .await?;
    if gone.rows_affected() == 0 {
        return Err(Refusal::not_found("Environment variable").into());
    }
    let mut event =
        NewEvent::new(place.aggregate, place.id, request.actor.clone(), &VariableRemoved { name: ask.name });
    event.org_id = org;
    once.tx.append(&[event]).await?;
    once.commit(()).await
}

pub(crate) async fn list(
    state: &State,
    _: &Request,
    ask: ListVariables,
) -> Result<Vec<VariableInfo>, Failure> {
    let place = Place::of(&ask.scope);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT name, fingerprint, version, created_at, updated_at, updated_by, last_used_at
         FROM contexts.variables WHERE scope = $1 AND scope_id = $2 ORDER BY name",
    )
    .bind(place.scope)
    .bind(place.id)
    .fetch_all(state.store.pool())
    .await?;
    if let (true, Scope::Context(id)) = (rows.is_empty(), &ask.scope) {
        // An empty context and none are two answers.
        let known: Option<bool> = sqlx::query_scalar("SELECT true FROM contexts.contexts WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(state.store.pool())
            .await?;
        known.ok_or_else(|| Refusal::not_found("Context"))?;
    }
    Ok(rows.into_iter().map(VariableInfo::from).collect())
}

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    fingerprint: String,
    version: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    updated_by: Option<Uuid>,
    last_used_at: Option<Timestamp>,
}

impl From<Row> for VariableInfo {
    fn from(row: Row) -> Self {
        Self {
            name: row.name,
            masked: format!("xxxx{}", row.fingerprint),
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
            updated_by: row.updated_by.map(UserId),
            last_used_at: row.last_used_at,
        }
    }
}

/// A variable as it lies.
pub(crate) struct Sealed {
    pub(crate) name: String,
    /// What its ciphertext is bound to.
    pub(crate) label: String,
    pub(crate) value: Vec<u8>,
    /// Nothing of the last hour is noted of its use.
    pub(crate) unnoted: bool,
}

/// The variables of these places, in their order and by name.
pub(crate) async fn sealed(conn: &mut PgConnection, places: &[Place]) -> anyhow::Result<Vec<Sealed>> {
    let (scopes, ids) = columns(places);
    let rows: Vec<(i64, String, i64, Vec<u8>, bool)> = sqlx::query_as(
        "SELECT p.place, v.name, v.version, v.sealed,
             coalesce(v.last_used_at < now() - interval '1 hour', true)
         FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS p(scope, id, place)
         JOIN contexts.variables v ON v.scope = p.scope AND v.scope_id = p.id ORDER BY p.place, v.name",
    )
    .bind(scopes)
    .bind(ids)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(place, name, version, value, unnoted)| {
            let place = usize::try_from(place - 1).ok().and_then(|at| places.get(at));
            let label = place.context("a variable of no place that was asked for")?.label(&name, version);
            Ok(Sealed { name, label, value, unnoted })
        })
        .collect()
}

/// Notes that the variables of these places were used, to the hour: what is read thousands of times a day is not
/// written as often. Whoever holds a row just now notes it too, or sets it anew.
pub(crate) async fn note_use(conn: &mut PgConnection, places: &[Place]) -> sqlx::Result<()> {
    let (scopes, ids) = columns(places);
    sqlx::query(
        "UPDATE contexts.variables SET last_used_at = now() WHERE (scope, scope_id, name) IN (
             SELECT v.scope, v.scope_id, v.name FROM unnest($1::text[], $2::uuid[]) AS p(scope, id)
             JOIN contexts.variables v ON v.scope = p.scope AND v.scope_id = p.id
             WHERE coalesce(v.last_used_at < now() - interval '1 hour', true) FOR UPDATE OF v SKIP LOCKED)",
    )
    .bind(scopes)
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

fn columns(places: &[Place]) -> (Vec<&'static str>, Vec<Uuid>) {
    places.iter().map(|place| (place.scope, place.id)).unzip()
}

/// Seals everything under the newest key, a batch per transaction.
pub(crate) async fn rewrap(state: &State) -> anyhow::Result<u64> {
    let newest = state.secrets.newest().await?;
    let key_version = i64::from(newest);
    let mut done = 0;
    // On and on by the key: a row that stays as it is holds up none after it.
    let mut after = (String::new(), Uuid::nil(), String::new());
    loop {
        let rows: Vec<(String, Uuid, String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT scope, scope_id, name, version, sealed FROM contexts.variables WHERE key_version < $1
                 AND (scope, scope_id, name) > ($3, $4, $5) ORDER BY scope, scope_id, name LIMIT $2",
        )
        .bind(key_version)
        .bind(REWRAP_BATCH)
        .bind(&after.0)
        .bind(after.1)
        .bind(&after.2)
        .fetch_all(state.store.pool())
        .await?;
        let Some((scope, id, name, ..)) = rows.last() else { return Ok(done) };
        after = (scope.clone(), *id, name.clone());
        let mut renewed = Vec::with_capacity(rows.len());
        for (scope, id, name, version, sealed) in rows {
            let place = Place::from_row(&scope, id)?;
            if let Some(sealed) = rewrap::renewed(state, &place.label(&name, version), &sealed).await? {
                renewed.push((sealed, place, name, version));
            }
        }
        let mut tx = state.store.begin(&[]).await?;
        for (sealed, place, name, version) in renewed {
            // A value that was set anew meanwhile has another version: it keeps its own ciphertext.
            let one = sqlx::query(
                "UPDATE contexts.variables SET sealed = $5, key_version = $6
                 WHERE scope = $1 AND scope_id = $2 AND name = $3 AND version = $4 AND key_version < $6",
            )
            .bind(place.scope)
            .bind(place.id)
            .bind(name)
            .bind(version)
            .bind(sealed)
            .bind(key_version)
            .execute(tx.conn())
            .await?;
            done += one.rows_affected();
        }
        tx.commit().await?;
    }
}

/// Where variables lie.
pub(crate) struct Place {
    scope: &'static str,
    aggregate: &'static str,
    id: Uuid,
}

impl Place {
    pub(crate) fn of(scope: &Scope) -> Self {
        match scope {
            Scope::Context(id) => Self { scope: "context", aggregate: "context", id: id.uuid() },
            Scope::Project(id) => Self { scope: "project", aggregate: "project_variables", id: id.uuid() },
        }
    }

    fn from_row(scope: &str, id: Uuid) -> anyhow::Result<Self> {
        match scope {
            "context" => Ok(Self::of(&Scope::Context(id.into()))),
            "project" => Ok(Self::of(&Scope::Project(id.into()))),
            other => anyhow::bail!("contexts.variables.scope of {id} is {other:?}"),
        }
    }

    fn key(&self) -> Key {
        Key::new(self.aggregate, self.id)
    }

    /// A context's organisation; the context must exist. A project's is the asker's to know.
    async fn org(&self, tx: &mut Tx) -> Result<Option<OrgId>, Failure> {
        if self.scope == "project" {
            return Ok(None);
        }
        let org: Option<Uuid> = sqlx::query_scalar("SELECT org_id FROM contexts.contexts WHERE id = $1")
            .bind(self.id)
            .fetch_optional(tx.conn())
            .await?;
        Ok(Some(OrgId(org.ok_or_else(|| Refusal::not_found("Context"))?)))
    }

    fn label(&self, name: &str, version: i64) -> String {
        secrets::label(&[self.scope, &self.id.to_string(), name, &version.to_string()])
    }
}

pub(crate) async fn unseal(state: &State, sealed: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let broken = || Refusal::new("invalid", "the value is not sealed for this service");
    let sealed = B64.decode(sealed).map_err(|_| broken())?;
    match state.secrets.decrypt(REQUEST_LABEL, &sealed).await {
        Ok(value) => Ok(value),
        Err(secrets::Error::Refused | secrets::Error::UnknownVersion(_)) => Err(broken().into()),
        Err(error) => Err(key_store(error)),
    }
}

pub(crate) fn key_store(error: secrets::Error) -> Failure {
    Failure(bus::failed(crate::NAME)(anyhow::Error::from(error)))
}

/// Keyed per place: equal values in two places do not show as equal.
fn fingerprint(state: &State, place: &Place, value: &[u8]) -> String {
    let purpose = format!("variable fingerprint {}", place.id);
    state.keys.sign(&purpose, value).iter().take(2).map(|byte| format!("{byte:02x}")).collect()
}

/// Names that change how the platform itself works are not for values from outside the configuration.
fn check_name(name: &str) -> Result<(), Refusal> {
    let mut bytes = name.bytes();
    let plain = name.len() <= MAX_NAME
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !plain {
        return Err(Refusal::new(
            "invalid",
            format!("a variable's name has up to {MAX_NAME} letters, digits and `_`, and no digit first"),
        ));
    }
    const NAMES: [&str; 5] = ["BASH_ENV", "ENV", "PROMPT_COMMAND", "NODE_OPTIONS", "PYTHONSTARTUP"];
    const PREFIXES: [&str; 5] = ["LD_", "DYLD_", "GIT_SSH", "GANTRY_", "CIRCLE_"];
    if NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Refusal::new("reserved_name", format!("the name {name} is reserved; choose another")));
    }
    Ok(())
}
