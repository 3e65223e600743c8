//! Who may do what where.
//!
//! Owns the aggregate `grant` (one per user). Consumes `user.created`: the installation's administrators get
//! the role `admin` everywhere. Answers [`CheckPermission`] by `model`'s pure `allow`.

use async_trait::async_trait;
use bus::{Bus, Fault, Group, Responder, failed, route, unknown};
use contracts::{
    Envelope, Event, NewEvent, Refusal, Request, RequestError,
    domain::UserCreated,
    permissions::{CheckPermission, RoleGranted},
    request::Ask,
};
use eventstore::{Key, Store, Tx};
use ids::UserId;
use model::permission::{Permission, Role, allow_any};
use sqlx::PgPool;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Name of the service and of its schema.
pub const NAME: &str = "permissions";

/// How long a check waits for news of a user of whom this service has not heard: it follows the directory
/// by some milliseconds, and a new user's first request must not lose that race.
const NEWS: Duration = Duration::from_secs(2);

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/permissions");

/// What the service needs.
pub struct Deps {
    /// Its database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
}

/// The running service.
pub struct Service {
    group: JoinHandle<()>,
}

/// Migrates the schema, begins to answer and to follow the directory.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = Store::open(deps.pool, NAME, &MIGRATOR).await?;
    deps.bus.register_source(&store);
    deps.bus.respond(NAME, Arc::new(Checks { store: store.clone() }));
    let group = deps.bus.consume(&store, &["domain"], Arc::new(Users), stop);
    Ok(Service { group })
}

impl Service {
    /// Returns when the service was stopped and its group has ended.
    ///
    /// # Errors
    /// The group panicked.
    pub async fn join(self) -> anyhow::Result<()> {
        Ok(self.group.await?)
    }
}

/// Follows the directory's users.
struct Users;

#[async_trait]
impl Group for Users {
    fn name(&self) -> &'static str {
        "permissions.users"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[UserCreated::TYPE]
    }

    fn locks(&self, message: &Envelope) -> Vec<Key> {
        vec![Key::new("grant", message.aggregate.id)]
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let user: UserCreated = message.body_as()?;
            sqlx::query("INSERT INTO permissions.users (user_id) VALUES ($1) ON CONFLICT DO NOTHING")
                .bind(user.user_id.uuid())
                .execute(tx.conn())
                .await?;
            if !user.admin {
                continue;
            }
            let granted = sqlx::query(
                "INSERT INTO permissions.grants (user_id, org_id, role) VALUES ($1, $2, 'admin')
                 ON CONFLICT DO NOTHING",
            )
            .bind(user.user_id.uuid())
            .bind(Uuid::nil())
            .execute(tx.conn())
            .await?;
            if granted.rows_affected() == 1 {
                let body = RoleGranted { user_id: user.user_id, org_id: None, role: "admin".into() };
                let event = NewEvent::new("grant", user.user_id.uuid(), message.actor.clone(), &body)
                    .caused_by(message.id);
                tx.append(&[event]).await?;
            }
        }
        Ok(())
    }
}

/// Answers the checks.
struct Checks {
    store: Store,
}

impl Checks {
    async fn check(&self, ask: &CheckPermission, permission: Permission) -> Result<bool, sqlx::Error> {
        // Subscribed before the first look, so that no news falls between.
        let mut news = self.store.committed();
        if !self.knows(ask.user_id).await? {
            let heard = async {
                while news.changed().await.is_ok() {
                    if self.knows(ask.user_id).await? {
                        break;
                    }
                }
                Ok::<_, sqlx::Error>(())
            };
            // In vain is an answer too: nobody of this name may do anything.
            tokio::time::timeout(NEWS, heard).await.unwrap_or(Ok(()))?;
        }
        let roles: Vec<String> = sqlx::query_scalar(
            "SELECT role FROM permissions.grants WHERE user_id = $1 AND org_id IN ($2, $3)",
        )
        .bind(ask.user_id.uuid())
        .bind(ask.org_id.uuid())
        .bind(Uuid::nil())
        .fetch_all(self.store.pool())
        .await?;
        Ok(allow_any(roles.iter().filter_map(|role| Role::parse(role)), permission))
    }

    async fn knows(&self, user: UserId) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM permissions.users WHERE user_id = $1)")
            .bind(user.uuid())
            .fetch_one(self.store.pool())
            .await
    }
}

#[async_trait]
impl Responder for Checks {
    async fn respond(&self, request: Request) -> Result<serde_json::Value, RequestError> {
        match request.name.as_str() {
            CheckPermission::NAME => {
                route::<CheckPermission, _, _>(&request, |ask, _| async move {
                    let permission = Permission::parse(&ask.permission).ok_or_else(|| {
                        Refusal::new("invalid", format!("there is no permission {:?}", ask.permission))
                    })?;
                    self.check(&ask, permission).await.map_err(failed(NAME))
                })
                .await
            }
            _ => Err(unknown(&request)),
        }
    }
}
