//! The message envelope (reliability §5.1).

use ids::{MessageId, OrgId, PipelineId, ProjectId, Timestamp, UserId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

/// The body of an event: past tense, versioned.
pub trait Event: Serialize + DeserializeOwned {
    /// Dotted name, for example `workflow.job_finished`.
    const TYPE: &'static str;
    /// Raised by a breaking change only; older ones are read through [`Event::upcast`].
    const SCHEMA: u32;

    /// Brings the body of an older schema to the newest form. Write one arm per older schema; the samples in
    /// `samples/` prove it for every version that was ever released.
    ///
    /// # Errors
    /// There never was such a schema.
    fn upcast(schema: u32, _body: Value) -> Result<Value, UnknownSchema> {
        Err(UnknownSchema { kind: Self::TYPE, schema, newest: Self::SCHEMA })
    }
}

/// An event's schema is none that this build can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} of schema {schema} cannot be read: the newest known is {newest}")]
pub struct UnknownSchema {
    /// Its type.
    pub kind: &'static str,
    /// Its schema.
    pub schema: u32,
    /// The newest that is known.
    pub newest: u32,
}

/// Reads a body of any schema that was ever written.
///
/// # Errors
/// The schema is unknown, or the body is not what it promises.
pub fn read<E: Event>(schema: u32, body: &Value) -> Result<E, serde_json::Error> {
    if schema == E::SCHEMA {
        return E::deserialize(body);
    }
    let newest = if schema < E::SCHEMA {
        E::upcast(schema, body.clone())
    } else {
        Err(UnknownSchema { kind: E::TYPE, schema, newest: E::SCHEMA })
    };
    E::deserialize(newest.map_err(serde::de::Error::custom)?)
}

/// What an event speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Aggregate {
    /// `workflow`, `task`, `pipeline` …
    pub kind: String,
    /// Its id.
    pub id: Uuid,
    /// Version after the event; the first event of an aggregate has 1.
    pub version: i64,
}

/// Who caused a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    /// A person or machine account.
    User {
        /// Who.
        id: UserId,
    },
    /// A service by itself: timers, sweeps, consequences of events.
    Service {
        /// Which.
        name: String,
    },
}

impl Actor {
    /// A service acting by itself.
    pub fn service(name: &str) -> Self {
        Self::Service { name: name.to_owned() }
    }

    /// The person, if it was one.
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::User { id } => Some(*id),
            Self::Service { .. } => None,
        }
    }
}

/// A stored or delivered event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Dedupe key.
    pub id: MessageId,
    /// Dotted type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Schema number of the body.
    pub schema: u32,
    /// Server time of the commit.
    pub occurred_at: Timestamp,
    /// Service that owns the aggregate.
    pub producer: String,
    /// W3C traceparent, when the cause was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What it speaks of.
    pub aggregate: Aggregate,
    /// Organisation, for routing and fairness.
    pub org_id: Option<OrgId>,
    /// Project, if it belongs to one.
    pub project_id: Option<ProjectId>,
    /// Message or request that led here.
    pub causation_id: Option<MessageId>,
    /// The pipeline that it all belongs to.
    pub correlation_id: Option<PipelineId>,
    /// Who caused it.
    pub actor: Actor,
    /// All that consumers need; at most 256 KiB.
    pub body: Value,
    /// Names, addresses and free text of people; no decision depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<Value>,
}

impl Envelope {
    /// Whether this is an event of type `E`.
    pub fn is<E: Event>(&self) -> bool {
        self.kind == E::TYPE
    }

    /// The body, brought to the newest schema of type `E`.
    ///
    /// # Errors
    /// The schema is unknown, or the body is not what it promises.
    pub fn body_as<E: Event>(&self) -> Result<E, serde_json::Error> {
        read(self.schema, &self.body)
    }
}

/// An event that a service is about to append. The store adds id, time, version and producer.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Dotted type.
    pub kind: &'static str,
    /// Schema number.
    pub schema: u32,
    /// Aggregate kind.
    pub aggregate: &'static str,
    /// Aggregate id.
    pub aggregate_id: Uuid,
    /// Organisation.
    pub org_id: Option<OrgId>,
    /// Project.
    pub project_id: Option<ProjectId>,
    /// Pipeline.
    pub correlation_id: Option<PipelineId>,
    /// Causing message.
    pub causation_id: Option<MessageId>,
    /// W3C traceparent of the cause; `None`: of what the store's caller is doing.
    pub trace: Option<String>,
    /// Who.
    pub actor: Actor,
    /// Body.
    pub body: Value,
    /// Personal part.
    pub personal: Option<Value>,
}

impl NewEvent {
    /// An event of `aggregate` with `body`.
    ///
    /// # Panics
    /// Never for our own bodies: they are plain data with string keys.
    pub fn new<E: Event>(aggregate: &'static str, id: impl Into<Uuid>, actor: Actor, body: &E) -> Self {
        Self {
            kind: E::TYPE,
            schema: E::SCHEMA,
            aggregate,
            aggregate_id: id.into(),
            org_id: None,
            project_id: None,
            correlation_id: None,
            causation_id: None,
            trace: None,
            actor,
            body: serde_json::to_value(body).expect("event bodies are plain data"),
            personal: None,
        }
    }

    /// Adds organisation and project.
    #[must_use]
    pub fn in_project(mut self, org: OrgId, project: ProjectId) -> Self {
        self.org_id = Some(org);
        self.project_id = Some(project);
        self
    }

    /// Adds the pipeline that it belongs to.
    #[must_use]
    pub fn of_pipeline(mut self, pipeline: PipelineId) -> Self {
        self.correlation_id = Some(pipeline);
        self
    }

    /// Adds the message that led here.
    #[must_use]
    pub fn caused_by(mut self, message: MessageId) -> Self {
        self.causation_id = Some(message);
        self
    }

    /// Adds the trace of the cause, where the cause is not what the store's caller is doing now.
    #[must_use]
    pub fn traced(mut self, trace: Option<String>) -> Self {
        self.trace = trace;
        self
    }

    /// Adds the personal part.
    #[must_use]
    pub fn with_personal(mut self, personal: Value) -> Self {
        self.personal = Some(personal);
        self
    }
}
