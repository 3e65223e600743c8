//! A pipeline with its number, in somebody's transaction.

use crate::{
    State,
    compile::{self, Outcome},
    fetch::Source,
    policies,
    values::Facts,
};
use blobs::Put;
use contracts::{
    Actor, NewEvent,
    domain::Project,
    pipelines::{PipelineCreated, PipelineView, Trigger, Vcs},
};
use eventstore::{Key, Tx};
use ids::{MessageId, PipelineId, Timestamp};
use model::plan::Plan;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use sqlx::types::Json;

/// Plans from this size on are blobs.
const INLINE: usize = 64 * 1024;

/// What a pipeline is made of.
pub(crate) struct New {
    pub(crate) project: Project,
    pub(crate) vcs: Vcs,
    pub(crate) before: Option<String>,
    pub(crate) trigger: Trigger,
    pub(crate) subject: Option<String>,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) source: Source,
    pub(crate) actor: Actor,
    pub(crate) cause: Option<MessageId>,
}

impl New {
    /// What its pipeline values come from.
    pub(crate) fn facts(&self, id: PipelineId, number: i64) -> Facts<'_> {
        Facts {
            id,
            number,
            project: &self.project,
            vcs: &self.vcs,
            trigger: &self.trigger,
            base_revision: self.before.as_deref(),
        }
    }
}

/// The lock under which a project's pipelines get their numbers. It is taken before the first write, so that the
/// number is known to the compiler and no two pipelines of a project compile for the same one.
pub(crate) fn lock(project: &Project) -> Key {
    Key::new("project_pipelines", project.id.uuid())
}

/// Compiles and creates; `tx` holds [`lock`] and has written nothing.
pub(crate) async fn create(state: &State, tx: &mut Tx, new: New) -> anyhow::Result<PipelineView> {
    let id = PipelineId::new();
    let last: Option<i64> = sqlx::query_scalar("SELECT last FROM pipelines.counters WHERE project_id = $1")
        .bind(new.project.id.uuid())
        .fetch_optional(tx.conn())
        .await?;
    let number = last.unwrap_or(0) + 1;
    let mut outcome = compile::compile(state, tx.conn(), id, number, &new).await?;
    if let Ok(source) = &new.source {
        policies::judge(state, tx, &new.facts(id, number), source, &mut outcome).await?;
    }
    let Outcome { plan, errors, compiled } = outcome;
    let setup = plan.as_ref().is_some_and(|plan| plan.setup);
    let (inline, digest) = place(state, plan).await?;

    sqlx::query(
        "INSERT INTO pipelines.counters (project_id, last) VALUES ($1, $2)
         ON CONFLICT (project_id) DO UPDATE SET last = excluded.last",
    )
    .bind(new.project.id.uuid())
    .bind(number)
    .execute(tx.conn())
    .await?;
    let state_word = match (errors.is_empty(), setup) {
        (false, _) => "errored",
        (true, true) => "setup",
        (true, false) => "created",
    };
    let created_at: Timestamp = sqlx::query_scalar(
        "INSERT INTO pipelines.pipelines
             (id, project_id, number, state, project, trigger, vcs, errors, subject, source, compiled, plan_digest,
              parameters, base_revision)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING created_at",
    )
    .bind(id.uuid())
    .bind(new.project.id.uuid())
    .bind(number)
    .bind(state_word)
    .bind(Json(&new.project))
    .bind(Json(&new.trigger))
    .bind(Json(&new.vcs))
    .bind(Json(&errors))
    .bind(&new.subject)
    .bind(new.source.as_deref().unwrap_or_default())
    .bind(&compiled)
    .bind(&digest)
    .bind(Json(&new.parameters))
    .bind(&new.before)
    .fetch_one(tx.conn())
    .await?;

    let body = PipelineCreated {
        pipeline_id: id,
        project: new.project,
        number,
        trigger: new.trigger,
        vcs: new.vcs,
        setup,
        errors,
        plan: inline,
        plan_digest: digest,
    };
    let mut event = NewEvent::new("pipeline", id.uuid(), new.actor, &body)
        .in_project(body.project.org_id, body.project.id)
        .of_pipeline(id);
    event.causation_id = new.cause;
    event.personal = new.subject.as_ref().map(|subject| json!({ "subject": subject }));
    tx.append(&[event]).await?;
    Ok(PipelineView {
        id,
        number,
        state: state_word.to_owned(),
        created_at,
        errors: body.errors,
        project: body.project,
        vcs: body.vcs,
        subject: new.subject,
        trigger: body.trigger,
    })
}

/// Where a plan rides: itself in the event, or its digest alone when it is large and lies in the blob store.
pub(crate) async fn place(
    state: &State,
    plan: Option<Plan>,
) -> anyhow::Result<(Option<Plan>, Option<String>)> {
    let Some(plan) = plan else { return Ok((None, None)) };
    let bytes = serde_json::to_vec(&plan)?;
    let sha256: [u8; 32] = Sha256::digest(&bytes).into();
    let name = hex::encode(sha256);
    if bytes.len() < INLINE {
        return Ok((Some(plan), Some(name)));
    }
    // Named by its content: stored before the commit it does no harm without it.
    let key = blobs::Key::new(format!("plans/{name}"))?;
    let (Put::Stored(_) | Put::AlreadyExists(_)) = state.blobs.put(&key, blobs::body(bytes), sha256).await?;
    Ok((None, Some(name)))
}
