//! Contexts, project variables and SSH keys, and the role `delivery` that hands them, sealed, to lease holders, and
//! signs the OIDC tokens of their jobs.
//!
//! Owns the aggregates `context`, `project_variables` and `project_keys`. Values lie as ciphertext of the `secrets` port,
//! bound to their place and version; they never ride in events, and in requests only sealed. Consumes
//! `workflow.job_ready` and `.job_ended` (whose variables a job may get) and `role.granted`. Answers the requests of
//! [`contracts::contexts`], and agents at `GET /v1/tasks/{task}/secrets` and `POST /v1/tasks/{task}/oidc`.

mod contexts;
mod delivery;
mod follow;
mod oidc;
mod restrictions;
mod rewrap;
mod seal;
mod ssh_keys;
mod variables;

use async_trait::async_trait;
use bus::{Bus, Responder};
use contracts::{Request, RequestError, contexts as ask};
use eventstore::Store;
use kit::keys::Keys;
use live::{Limiter, Live, Quota};
use secrets::Secrets;
use sqlx::PgPool;
use std::sync::Arc;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use oidc::{Rotation, rotation};

/// Name of the service and of its schema.
pub const NAME: &str = "contexts";

/// Label under which a value is sealed while it rides in a request.
pub const REQUEST_LABEL: &str = "request";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/contexts");

/// What the service needs.
pub struct Deps {
    /// Its database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Encrypts and decrypts values.
    pub secrets: Arc<dyn Secrets>,
    /// Verifies fence tokens, makes fingerprints.
    pub keys: Keys,
    /// Where the installation is reached: issuer of OIDC tokens.
    pub public_url: String,
    /// Where deliveries are counted.
    pub live: Arc<dyn Live>,
    /// How often secrets of one organisation are opened; `None`: as often as jobs ask.
    pub deliveries: Option<Quota>,
    /// Whether a context takes no value that cannot be masked.
    pub refuse_unmaskable: bool,
}

/// The running service.
pub struct Service {
    state: State,
    groups: Vec<JoinHandle<()>>,
}

/// Migrates the schema, begins to answer and to follow conductor and permissions.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let Deps { pool, bus, secrets, keys, public_url, live, deliveries, refuse_unmaskable } = deps;
    let store = Store::open(pool, NAME, &MIGRATOR).await?;
    let (signing, signs) = watch::channel(false);
    let base: Arc<str> = Arc::from(public_url.trim_end_matches('/'));
    let limiter = Arc::new(Limiter::new(live));
    let state = State {
        store: store.clone(),
        secrets,
        keys,
        base: Arc::clone(&base),
        signs,
        signers: oidc::Signers::new(),
        limiter,
        deliveries,
        refuse_unmaskable,
    };
    bus.register_source(&store);
    bus.respond(NAME, Arc::new(state.clone()));
    let host = base.split_once("://").map_or(&*base, |(_, host)| host).to_owned();
    let groups = vec![
        bus.consume(&store, &["conductor"], Arc::new(follow::Jobs { host }), stop.clone()),
        bus.consume(&store, &["permissions"], Arc::new(follow::Grants), stop.clone()),
        tokio::spawn(oidc::keep(state.clone(), signing, stop.clone())),
        tokio::spawn(rewrap::regularly(state.clone(), stop)),
    ];
    Ok(Service { state, groups })
}

impl Service {
    /// What agents call.
    pub fn agent_router(&self) -> axum::Router {
        delivery::router(self.state.clone())
    }

    /// Seals every value under the newest key. Happens by itself within an hour of a rotation; running it again is harmless.
    /// Answer: how many were rewrapped.
    ///
    /// # Errors
    /// The database or the key store failed; what was done until then stays done.
    pub async fn rewrap(&self) -> anyhow::Result<u64> {
        rewrap::everything(&self.state).await
    }

    /// Returns when the service was stopped and its groups have ended.
    ///
    /// # Errors
    /// A group panicked.
    pub async fn join(self) -> anyhow::Result<()> {
        for group in self.groups {
            group.await?;
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) keys: Keys,
    pub(crate) base: Arc<str>,
    /// Whether a key signs OIDC tokens.
    pub(crate) signs: watch::Receiver<bool>,
    pub(crate) signers: oidc::Signers,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) deliveries: Option<Quota>,
    pub(crate) refuse_unmaskable: bool,
}

#[async_trait]
impl Responder for State {
    async fn respond(&self, request: Request) -> Result<serde_json::Value, RequestError> {
        bus::answer!(self, request, {
            ask::CreateContext => contexts::create,
            ask::DeleteContext => contexts::delete,
            ask::GetContext => contexts::get,
            ask::ListContexts => contexts::list,
            ask::AddRestriction => restrictions::add,
            ask::ListRestrictions => restrictions::list,
            ask::RemoveRestriction => restrictions::remove,
            ask::Unrestrict => restrictions::unrestrict,
            ask::SetVariable => variables::set,
            ask::RemoveVariable => variables::remove,
            ask::ListVariables => variables::list,
            ask::AddSshKey => ssh_keys::add,
            ask::MakeCheckoutKey => ssh_keys::make,
            ask::ListSshKeys => ssh_keys::list,
            ask::RemoveSshKey => ssh_keys::remove,
            ask::GetJwks => oidc::jwks,
        })
    }
}
