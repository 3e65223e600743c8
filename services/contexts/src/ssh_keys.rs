//! SSH keys of projects: those that fetch the repository and those that `add_ssh_keys` puts into jobs
//! (execution §14.2, api-v2 §7). Their private halves are never read back but by jobs.

use crate::{
    State,
    variables::{key_store, unseal},
};
use anyhow::{Context, anyhow};
use aws_lc_rs::{encoding::AsBigEndian, signature::Ed25519KeyPair};
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    contexts::{
        AddSshKey, ListSshKeys, MakeCheckoutKey, RemoveSshKey, SshKeyAdded, SshKeyInfo, SshKeyPurpose,
        SshKeyRemoved,
    },
};
use eventstore::Key;
use ids::{ProjectId, SshKeyId, Timestamp};
use md5::{Digest, Md5};
use secrets::Zeroizing;
use sqlx::PgConnection;
use ssh_key::{
    HashAlg, LineEnding, PrivateKey,
    private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData},
    public::Ed25519PublicKey,
};
use uuid::Uuid;

/// Longest private key in bytes.
const MAX_KEY: usize = 32 * 1024;
/// Keys of one project.
const MAX_KEYS: i64 = 100;

/// A private key that was read, and what is told of it.
struct Pair {
    private: Zeroizing<String>,
    public: String,
    md5: String,
    sha256: String,
}

impl Pair {
    /// Reads a key as people paste it.
    fn read(text: &[u8]) -> Result<Self, Refusal> {
        let invalid = |message: &str| Refusal::new("invalid", message);
        if text.len() > MAX_KEY {
            return Err(invalid("a private key has at most 32768 bytes"));
        }
        let text = std::str::from_utf8(text).map_err(|_| invalid("a private key is text"))?;
        // Windows and forms of web pages change the ends of lines, and cut the last one.
        let text = Zeroizing::new(format!("{}\n", text.replace("\r\n", "\n").trim()));
        if !text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
            return Err(invalid(
                "the private key is not in OpenSSH's format (-----BEGIN OPENSSH PRIVATE KEY-----); \
                 `ssh-keygen -p -N '' -f FILE` converts one",
            ));
        }
        let key = PrivateKey::from_openssh(text.as_bytes())
            .map_err(|e| invalid(&format!("the private key cannot be read: {e}")))?;
        if key.is_encrypted() {
            return Err(invalid(
                "the private key has a passphrase, which no job can type; `ssh-keygen -p -N '' -f FILE` removes it",
            ));
        }
        Self::of(&key).map_err(|e| invalid(&format!("the private key cannot be read: {e}")))
    }

    /// A new Ed25519 pair.
    fn make(comment: &str) -> anyhow::Result<Self> {
        let made = Ed25519KeyPair::generate().map_err(|_| anyhow!("no key could be made"))?;
        let seed = made.seed().map_err(|_| anyhow!("the key has no seed"))?;
        let seed = seed.as_be_bytes().map_err(|_| anyhow!("the key has no seed"))?;
        let seed: &[u8; 32] = seed.as_ref().try_into().context("a seed has 32 bytes")?;
        let public = aws_lc_rs::signature::KeyPair::public_key(&made).as_ref();
        let public = Ed25519PublicKey(public.try_into().context("a public key has 32 bytes")?);
        let pair = Ed25519Keypair { public, private: Ed25519PrivateKey::from_bytes(seed) };
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment).map_err(|e| anyhow!("{e}"))?;
        Self::of(&key).map_err(|e| anyhow!("{e}"))
    }

    fn of(key: &PrivateKey) -> ssh_key::Result<Self> {
        let public = key.public_key();
        let digest = Md5::digest(public.to_bytes()?);
        let md5: Vec<String> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            private: key.to_openssh(LineEnding::LF)?,
            public: public.to_openssh()?,
            md5: md5.join(":"),
            sha256: public.fingerprint(HashAlg::Sha256).to_string(),
        })
    }
}

pub(crate) async fn add(state: &State, request: &Request, ask: AddSshKey) -> Result<SshKeyInfo, Failure> {
    let hostname = ask.hostname.as_deref().map(str::trim).unwrap_or_default().to_owned();
    let plain = hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    if hostname.len() > 253 || !plain {
        return Err(Refusal::new("invalid", "a host name has letters, digits, `.`, `-`, `_` and `:`").into());
    }
    let pair = Pair::read(&unseal(state, &ask.sealed).await?)?;
    // Sealed anew each time it is sent: a repeat is known by the key itself.
    let mut known = request.clone();
    if let Some(sealed) = known.body.get_mut("sealed") {
        *sealed = pair.sha256.clone().into();
    }
    let kind = "additional";
    keep(state, &known, ask.project_id, SshKeyPurpose::Additional, kind, &hostname, || Ok(pair)).await
}

pub(crate) async fn make(
    state: &State,
    request: &Request,
    ask: MakeCheckoutKey,
) -> Result<SshKeyInfo, Failure> {
    if !["deploy-key", "user-key"].contains(&ask.kind.as_str()) {
        return Err(Refusal::new("invalid", "a checkout key's type is deploy-key or user-key").into());
    }
    let comment = format!("{} of project {}", ask.kind, ask.project_id);
    let make = || Pair::make(&comment).map_err(|error| Failure(bus::failed(crate::NAME)(error)));
    keep(state, request, ask.project_id, SshKeyPurpose::Checkout, &ask.kind, "", make).await
}

async fn keep(
    state: &State,
    request: &Request,
    project: ProjectId,
    purpose: SshKeyPurpose,
    kind: &str,
    hostname: &str,
    pair: impl FnOnce() -> Result<Pair, Failure>,
) -> Result<SshKeyInfo, Failure> {
    let mut once = match Once::begin(&state.store, request, &[key(project)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let pair = pair()?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM contexts.ssh_keys WHERE project_id = $1")
        .bind(project.uuid())
        .fetch_one(once.tx.conn())
        .await?;
    if count >= MAX_KEYS {
        let message = format!("a project has at most {MAX_KEYS} SSH keys; remove one first");
        return Err(Refusal::new("limit_reached", message).into());
    }
    let id = SshKeyId::new();
    let sealed =
        state.secrets.encrypt(&label(id.uuid()), pair.private.as_bytes()).await.map_err(key_store)?;
    let key_version = state.secrets.version_of(&sealed).map_err(key_store)?;
    let row: Option<Row> = sqlx::query_as(
        "INSERT INTO contexts.ssh_keys
             (id, project_id, purpose, kind, hostname, public_key, md5, sha256, sealed, key_version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING
         RETURNING kind, hostname, public_key, md5, sha256, created_at",
    )
    .bind(id.uuid())
    .bind(project.uuid())
    .bind(purpose.as_str())
    .bind(kind)
    .bind(hostname)
    .bind(&pair.public)
    .bind(&pair.md5)
    .bind(&pair.sha256)
    .bind(&sealed)
    .bind(i64::from(key_version))
    .fetch_optional(once.tx.conn())
    .await?;
    let row = row.ok_or_else(|| {
        Refusal::new("exists", format!("the project has the key {} for this host already", pair.md5))
    })?;
    let hostname = (!hostname.is_empty()).then(|| hostname.to_owned());
    let body = SshKeyAdded { purpose, sha256: pair.sha256, hostname };
    let event = NewEvent::new("project_keys", project.uuid(), request.actor.clone(), &body);
    once.tx.append(&[event]).await?;
    once.commit(info(purpose, row, purpose == SshKeyPurpose::Checkout)).await
}

pub(crate) async fn list(state: &State, _: &Request, ask: ListSshKeys) -> Result<Vec<SshKeyInfo>, Failure> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT kind, hostname, public_key, md5, sha256, created_at FROM contexts.ssh_keys
         WHERE project_id = $1 AND purpose = $2 ORDER BY id",
    )
    .bind(ask.project_id.uuid())
    .bind(ask.purpose.as_str())
    .fetch_all(state.store.pool())
    .await?;
    let last = rows.len();
    Ok((1..)
        .zip(rows)
        .map(|(n, row)| info(ask.purpose, row, ask.purpose == SshKeyPurpose::Checkout && n == last))
        .collect())
}

pub(crate) async fn remove(state: &State, request: &Request, ask: RemoveSshKey) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[key(ask.project_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let gone: Vec<String> = sqlx::query_scalar(
        "DELETE FROM contexts.ssh_keys WHERE project_id = $1 AND purpose = $2 AND $3 IN (md5, sha256)
             AND hostname = coalesce($4, hostname) RETURNING sha256",
    )
    .bind(ask.project_id.uuid())
    .bind(ask.purpose.as_str())
    .bind(&ask.fingerprint)
    .bind(&ask.hostname)
    .fetch_all(once.tx.conn())
    .await?;
    let sha256 = gone.into_iter().next().ok_or_else(|| Refusal::not_found("SSH key"))?;
    let body = SshKeyRemoved { purpose: ask.purpose, sha256 };
    let event = NewEvent::new("project_keys", ask.project_id.uuid(), request.actor.clone(), &body);
    once.tx.append(&[event]).await?;
    once.commit(()).await
}

/// A key as it lies.
#[derive(sqlx::FromRow)]
pub(crate) struct Sealed {
    id: Uuid,
    hostname: String,
    public_key: String,
    md5: String,
    pub(crate) sha256: String,
    /// The private half.
    pub(crate) sealed: Vec<u8>,
}

impl Sealed {
    /// What its private half is bound to.
    pub(crate) fn label(&self) -> String {
        label(self.id)
    }

    /// As an agent gets it.
    pub(crate) fn opened(self, private: &[u8]) -> anyhow::Result<agent_api::SshKey> {
        Ok(agent_api::SshKey {
            hostname: (!self.hostname.is_empty()).then_some(self.hostname),
            md5: self.md5,
            sha256: self.sha256,
            public_key: self.public_key,
            private_key: std::str::from_utf8(private)?.to_owned(),
        })
    }
}

/// The keys of a project that a job may have: additional ones among `wanted`, or all if it is empty.
pub(crate) async fn additional(
    conn: &mut PgConnection,
    project: ProjectId,
    wanted: &[String],
) -> sqlx::Result<Vec<Sealed>> {
    sqlx::query_as(
        "SELECT id, hostname, public_key, md5, sha256, sealed FROM contexts.ssh_keys
         WHERE project_id = $1 AND purpose = 'additional'
             AND (cardinality($2::text[]) = 0 OR md5 = ANY($2) OR sha256 = ANY($2)) ORDER BY id",
    )
    .bind(project.uuid())
    .bind(wanted)
    .fetch_all(conn)
    .await
}

/// The newest of the keys that fetch the repository.
pub(crate) async fn checkout(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Sealed>> {
    sqlx::query_as(
        "SELECT id, hostname, public_key, md5, sha256, sealed FROM contexts.ssh_keys
         WHERE project_id = $1 AND purpose = 'checkout' ORDER BY id DESC LIMIT 1",
    )
    .bind(project.uuid())
    .fetch_optional(conn)
    .await
}

/// What a private half is bound to.
pub(crate) fn label(id: Uuid) -> String {
    secrets::label(&["ssh_key", &id.to_string()])
}

fn key(project: ProjectId) -> Key {
    Key::new("project_keys", project.uuid())
}

type Row = (String, String, String, String, String, Timestamp);

fn info(purpose: SshKeyPurpose, row: Row, preferred: bool) -> SshKeyInfo {
    let (kind, hostname, public_key, md5, sha256, created_at) = row;
    let hostname = (!hostname.is_empty()).then_some(hostname);
    SshKeyInfo { purpose, kind, hostname, public_key, md5, sha256, preferred, created_at }
}
