//! Messages that a service gave up on: list, replay, discard (reliability §5.5).

use crate::serve::ROLES;
use anyhow::Context;
use bus::{Bus, DeadLetter, Filter};
use contracts::Actor;
use eventstore::{Databases, Store};
use ids::{MessageId, Timestamp};
use serde::{Deserialize, Serialize};

/// Which dead letters; what is left out does not restrict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    /// Of this service.
    pub service: Option<String>,
    /// Of this group.
    pub group: Option<String>,
    /// This message.
    pub id: Option<MessageId>,
    /// Of this event type.
    pub kind: Option<String>,
    /// With this reason: `rejected`, `retries_exhausted`, `unsupported_version`.
    pub reason: Option<String>,
    /// Dead since then.
    pub since: Option<Timestamp>,
}

impl Which {
    /// Nothing restricts: everything is meant.
    pub fn is_everything(&self) -> bool {
        self.service.is_none()
            && self.group.is_none()
            && self.id.is_none()
            && self.kind.is_none()
            && self.reason.is_none()
            && self.since.is_none()
    }

    fn filter(&self) -> Filter {
        Filter {
            group: self.group.clone(),
            id: self.id,
            kind: self.kind.clone(),
            reason: self.reason.clone(),
            since: self.since,
        }
    }

    fn services(&self) -> anyhow::Result<Vec<&'static str>> {
        match &self.service {
            None => Ok(ROLES.to_vec()),
            Some(wanted) => {
                let found = ROLES.iter().find(|role| *role == wanted);
                Ok(vec![found.with_context(|| format!("there is no service {wanted}"))?])
            }
        }
    }
}

/// A dead letter with its service.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    /// Whose group gave it up.
    pub service: &'static str,
    /// The letter.
    #[serde(flatten)]
    pub letter: DeadLetter,
}

/// Dead letters, by service and age. People's names and texts are left out.
///
/// # Errors
/// The service does not exist, or the database is away.
pub async fn list(bus: &Bus, databases: &Databases, which: &Which) -> anyhow::Result<Vec<Letter>> {
    let mut all = Vec::new();
    for service in which.services()? {
        let store = Store::attach(databases.of(service).clone(), service);
        for mut letter in bus.dead_letters(&store, &which.filter()).await? {
            letter.message.personal = None;
            all.push(Letter { service, letter });
        }
    }
    Ok(all)
}

/// Hands them out again; says how many.
///
/// # Errors
/// The service does not exist, or the database is away.
pub async fn replay(bus: &Bus, databases: &Databases, which: &Which, by: &Actor) -> anyhow::Result<u64> {
    let mut count = 0;
    for service in which.services()? {
        count +=
            bus.replay(&Store::attach(databases.of(service).clone(), service), &which.filter(), by).await?;
    }
    Ok(count)
}

/// Gives them up for good, with a reason that is kept; says how many.
///
/// # Errors
/// The service does not exist, or the database is away.
pub async fn discard(
    bus: &Bus,
    databases: &Databases,
    which: &Which,
    by: &Actor,
    why: &str,
) -> anyhow::Result<u64> {
    let mut count = 0;
    for service in which.services()? {
        count += bus
            .discard(&Store::attach(databases.of(service).clone(), service), &which.filter(), by, why)
            .await?;
    }
    Ok(count)
}
