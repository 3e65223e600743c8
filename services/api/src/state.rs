//! What every handler has.

use crate::{auth::Caller, error::Fail, rates::Rates, store::Views, streams::Streams};
use blobs::Blobs;
use bus::{AskOptions, Bus};
use contracts::{Actor, RequestError, domain::User, request::Ask};
use futures::StreamExt;
use ids::OrgId;
use kit::keys::Keys;
use live::Live;
use model::permission::Permission;
use moka::future::Cache;
use secrets::Secrets;
use std::{
    collections::HashMap, future::Future, hash::Hash, ops::Deref, path::PathBuf, sync::Arc, time::Duration,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// How long a verified token or permission is believed.
const BELIEVED: Duration = Duration::from_secs(5);
/// While the owner of tokens or grants does not answer, reads go on for so long with what it said last (architecture §3).
const READS_GO_ON: Duration = Duration::from_secs(60);
/// How long a read that can go on with that waits for the owner.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a reader waits for a view to catch up (architecture §5).
pub const CATCH_UP: Duration = Duration::from_millis(500);

/// Settings of the edge.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address under which people reach us, without a slash at the end.
    pub public_url: String,
    /// Folder of the embedded git server's repositories.
    pub git_root: PathBuf,
    /// How long a push waits for its pipeline's number.
    pub decision_wait: Duration,
    /// Open live streams at most; beyond it a new one is refused.
    pub max_streams: usize,
    /// Of those, of one session in all processes; 0: no limit.
    pub max_streams_of_session: usize,
    /// Requests about one organisation: per second, and at once; 0 per second: no limit.
    pub org_requests: (u32, u32),
    /// Requests of one person: per second, and at once; 0 per second: no limit.
    pub requests: (u32, u32),
    /// Changes that one person asks for, likewise.
    pub changes: (u32, u32),
    /// Shown by `/version`.
    pub version: String,
}

impl Config {
    /// Defaults for an address and a folder.
    pub fn new(public_url: impl Into<String>, git_root: impl Into<PathBuf>) -> Self {
        Self {
            public_url: public_url.into().trim_end_matches('/').to_owned(),
            git_root: git_root.into(),
            decision_wait: Duration::from_secs(3),
            max_streams: 1000,
            max_streams_of_session: 10,
            org_requests: (1000, 2000),
            requests: (150, 300),
            changes: (20, 60),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Look: what the owners of tokens and grants said last is good for a minute without them.
    Read,
    /// Anything else: waits for the owners.
    Change,
}

/// Shared state; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// Fields of [`App`].
pub struct Inner {
    pub bus: Bus,
    pub store: eventstore::Store,
    pub views: Views,
    pub keys: Keys,
    pub secrets: Arc<dyn Secrets>,
    pub blobs: Arc<dyn Blobs>,
    pub config: Config,
    pub git: vcs::Git,
    pub live: Arc<dyn Live>,
    pub rates: Rates,
    pub streams: Streams,
    pub stop: CancellationToken,
    /// One at a time compares a repository's refs with what was delivered.
    pub repositories: Mutex<HashMap<uuid::Uuid, Arc<Mutex<()>>>>,
    pub sign_in: crate::setup::SignIn,
    tokens: Cache<[u8; 32], User>,
    grants: Cache<(uuid::Uuid, OrgId, Permission), bool>,
    /// The same for longer, for reads while the owner is away.
    last_tokens: Cache<[u8; 32], User>,
    last_grants: Cache<(uuid::Uuid, OrgId, Permission), bool>,
}

impl Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    pub fn new(deps: crate::Deps, store: eventstore::Store, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            bus: deps.bus,
            views: Views::new(deps.pool),
            store,
            keys: deps.keys,
            secrets: deps.secrets,
            blobs: deps.blobs,
            git: vcs::Git::new(&deps.config.git_root),
            rates: Rates::new(Arc::clone(&deps.live), &deps.config),
            streams: Streams::new(
                Arc::clone(&deps.live),
                deps.config.max_streams,
                deps.config.max_streams_of_session,
            ),
            live: deps.live,
            config: deps.config,
            stop,
            repositories: Mutex::default(),
            sign_in: crate::setup::SignIn::default(),
            tokens: Cache::builder().max_capacity(10_000).time_to_live(BELIEVED).build(),
            grants: Cache::builder().max_capacity(50_000).time_to_live(BELIEVED).build(),
            last_tokens: Cache::builder().max_capacity(10_000).time_to_live(READS_GO_ON).build(),
            last_grants: Cache::builder().max_capacity(50_000).time_to_live(READS_GO_ON).build(),
        }))
    }

    /// The holder of a token.
    pub async fn holder(&self, token: &str, intent: Intent) -> Result<Holder, Fail> {
        use sha2::{Digest, Sha256};
        if token.is_empty() || token.len() > 4096 {
            return Err(Fail::unauthenticated());
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.tokens.get(&digest).await {
            return Ok(Holder { user, fresh: true });
        }
        let ask = contracts::domain::VerifyToken { sha256: hex::encode(digest) };
        let last = self.last(intent, &self.last_tokens, &digest).await;
        match self.bus.ask_with(patience(&last), &Actor::service("api"), &ask).await {
            Ok(user) => {
                self.tokens.insert(digest, user.clone()).await;
                self.last_tokens.insert(digest, user.clone()).await;
                Ok(Holder { user, fresh: true })
            }
            Err(RequestError::Refused(_)) => {
                self.last_tokens.invalidate(&digest).await;
                Err(Fail::unauthenticated())
            }
            Err(other) => match last.filter(|_| away(&other)) {
                Some(user) => Ok(Holder { user, fresh: false }),
                None => Err(other.into()),
            },
        }
    }

    /// Refuses what the caller may not do in an organisation. Reading says "not found", so that nothing is
    /// told about what exists.
    ///
    /// # Errors
    /// Also 429 `rate_limited`: there were too many requests about the organisation.
    pub async fn allow(&self, caller: &Caller, permission: Permission, org: OrgId) -> Result<(), Fail> {
        self.rates.organisation(caller, org).await?;
        if caller.user.admin {
            return Ok(());
        }
        let key = (caller.user.id.uuid(), org, permission);
        let allowed = match self.grants.get(&key).await {
            Some(allowed) => allowed,
            None => {
                let ask = contracts::permissions::CheckPermission {
                    user_id: caller.user.id,
                    permission: permission.as_str().to_owned(),
                    org_id: org,
                };
                let intent = if permission == Permission::Read { Intent::Read } else { Intent::Change };
                let last = self.last(intent, &self.last_grants, &key).await;
                match self.bus.ask_with(patience(&last), &caller.actor(), &ask).await {
                    Ok(allowed) => {
                        self.grants.insert(key, allowed).await;
                        self.last_grants.insert(key, allowed).await;
                        allowed
                    }
                    Err(other) => last.filter(|_| away(&other)).ok_or(other)?,
                }
            }
        };
        if allowed {
            Ok(())
        } else if permission == Permission::Read {
            Err(Fail::not_found("Resource"))
        } else {
            Err(Fail::forbidden())
        }
    }

    /// What an owner said last, where that is good enough.
    async fn last<K: Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>(
        &self,
        intent: Intent,
        known: &Cache<K, V>,
        key: &K,
    ) -> Option<V> {
        if intent == Intent::Read { known.get(key).await } else { None }
    }

    /// Asks an owner on behalf of the caller.
    pub async fn ask<A: Ask>(&self, caller: &Caller, ask: &A) -> Result<A::Reply, RequestError> {
        self.bus.ask(&caller.actor(), ask).await
    }

    /// The same for a change: the client's `Idempotency-Key` goes with it.
    pub async fn command<A: Ask>(&self, caller: &Caller, ask: &A) -> Result<A::Reply, RequestError> {
        if !caller.fresh {
            return Err(RequestError::NoResponder { service: "domain".to_owned() });
        }
        self.rates.change(caller.user.id).await?;
        let options = AskOptions {
            deadline: Duration::from_secs(10),
            idempotency_key: caller.idempotency_key.clone(),
            ..AskOptions::default()
        };
        self.bus.ask_with(options, &caller.actor(), ask).await
    }

    /// Repeats `look` until it finds something or the time to catch up is over. Looks when a view changed,
    /// and on a timer.
    pub async fn caught_up<T, F>(&self, mut look: impl FnMut() -> F) -> Result<Option<T>, Fail>
    where
        F: Future<Output = Result<Option<T>, sqlx::Error>>,
    {
        // Mostly the first look finds it.
        if let Some(found) = look().await? {
            return Ok(Some(found));
        }
        let mut changes = self.live.subscribe(VIEWS_TOPIC).await.ok();
        let end = tokio::time::Instant::now() + CATCH_UP;
        loop {
            if let Some(found) = look().await? {
                return Ok(Some(found));
            }
            let pause = async {
                match changes.as_mut() {
                    Some(changes) => {
                        let _ = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
                    }
                    None => tokio::time::sleep(Duration::from_millis(25)).await,
                }
            };
            if tokio::time::timeout_at(end, pause).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Waits until the view of a workflow has this version, or the time to catch up is over.
    pub async fn workflow_seen(&self, id: ids::WorkflowId, version: i64) {
        let seen = self
            .caught_up(|| async { Ok(self.views.workflow(id).await?.filter(|row| row.version >= version)) })
            .await;
        if let Ok(None) | Err(_) = seen {
            tracing::debug!(%id, version, "answered before the view had caught up");
        }
    }

    /// Address of a page.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.config.public_url)
    }
}

/// Who holds a token.
pub struct Holder {
    /// Who.
    pub user: User,
    /// Its owner said so a moment ago; else what it said last stands in while it is away, and serves reads alone.
    pub fresh: bool,
}

/// Topic on which `projector` announces that views changed.
pub const VIEWS_TOPIC: &str = "views";

/// Whoever can go on without an answer does not wait long for it.
fn patience<T>(last: &Option<T>) -> AskOptions {
    let mut options = AskOptions::default();
    if last.is_some() {
        options.deadline = PATIENCE;
    }
    options
}

/// The owner did not answer, rather than against it.
pub fn away(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::NoResponder { .. }
            | RequestError::Unsent { .. }
            | RequestError::Deadline { .. }
            | RequestError::Unavailable { .. }
    )
}
