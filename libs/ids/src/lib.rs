//! Typed identifiers. Every id is a UUIDv7 behind a wrapper of its own, so that a job's id cannot be
//! passed where a task's is meant. This crate is the only place that makes random ids.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A moment, in UTC. The database keeps microseconds.
pub type Timestamp = DateTime<Utc>;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh id (UUIDv7: sorts by the time it was made, within one machine).
            #[allow(clippy::new_without_default, reason = "a default id would hide that it is random")]
            #[expect(clippy::disallowed_methods, reason = "this is the place that makes ids")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id as the plain UUID that databases bind.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )*};
}

ids! {
    /// An organisation.
    OrgId,
    /// A person or machine account.
    UserId,
    /// An API token.
    TokenId,
    /// A project: one repository that is built.
    ProjectId,
    /// One inbound push or webhook.
    DeliveryId,
    /// One compile of a configuration for one revision.
    PipelineId,
    /// One instance of a named workflow.
    WorkflowId,
    /// One node of a workflow's graph.
    JobId,
    /// One executor environment of a job: there are `parallelism` of them.
    TaskId,
    /// One step of one task; also the id of its output stream.
    StepId,
    /// A resource class that self-hosted runners serve.
    RunnerClassId,
    /// A token of such a class.
    RunnerTokenId,
    /// A set of shared secrets.
    ContextId,
    /// An SSH key of a project.
    SshKeyId,
    /// A key that signs OIDC tokens.
    OidcKeyId,
    /// A restriction of a context.
    RestrictionId,
    /// An uploaded object of a task: a chunk, an artifact, a report.
    ObjectId,
    /// A kept archive: of a cache or of a workspace layer.
    ArchiveId,
    /// A message: an event or a request.
    MessageId,
    /// One attempt of an agent to claim a task.
    ClaimId,
    /// A process that takes part: a server or an agent, new at each start.
    InstanceId,
    /// A namespace of the orb registry.
    OrbNamespaceId,
    /// An orb.
    OrbId,
    /// A version of an orb.
    OrbVersionId,
    /// A set of config policies.
    PolicyBundleId,
    /// A decision by config policies.
    PolicyDecisionId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_as_plain_uuids() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }
}
