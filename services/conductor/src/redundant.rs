//! Older workflows of a branch are canceled when a newer pipeline arrives, where the project wants that
//! (execution §8). What is to be looked after lies in a table from the commit that makes the new workflows, so
//! that a crash in between forgets nothing.

use crate::{
    State,
    error::{Error, Result},
    key, me, now,
    step::{self, Cause},
    store,
};
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{
    Envelope, Event as _,
    domain::{Project, ProjectSettingsChanged},
    pipelines::{PipelineCreated, Trigger, Vcs},
};
use eventstore::{Key, Tx, trace};
use ids::{MessageId, WorkflowId};
use model::workflow::Walk;
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// Branches looked after at a time.
const AT_ONCE: i64 = 100;

/// Keeps the settings of projects that decide here.
pub(crate) struct Settings;

#[async_trait]
impl Group for Settings {
    fn name(&self) -> &'static str {
        "conductor.settings"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[ProjectSettingsChanged::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let changed: ProjectSettingsChanged = message.body_as()?;
            sqlx::query(
                "INSERT INTO conductor.project_settings AS s (project_id, auto_cancel, version) VALUES ($1, $2, $3) \
                 ON CONFLICT (project_id) DO UPDATE SET auto_cancel = $2, version = $3 WHERE s.version < $3",
            )
            .bind(changed.project_id.uuid())
            .bind(changed.settings.autocancel_builds)
            .bind(message.aggregate.version)
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }
}

/// What of a new pipeline decides whether older ones become redundant: its plan, which is large, does not.
#[derive(Deserialize)]
struct Newest {
    project: Project,
    trigger: Trigger,
    vcs: Vcs,
}

/// The branch whose older pipelines a new one may make redundant.
fn branch<'a>(project: &Project, trigger: &Trigger, vcs: &'a Vcs) -> Option<&'a str> {
    let branch = vcs.branch.as_deref()?;
    let pushed = matches!(trigger.kind.as_str(), "webhook" | "api");
    (pushed && branch != project.default_branch).then_some(branch)
}

/// Whether [`note`] may have noted this one.
pub(crate) fn may_be_noted(message: &Envelope) -> bool {
    Newest::deserialize(&message.body)
        .is_ok_and(|Newest { project, trigger, vcs }| branch(&project, &trigger, &vcs).is_some())
}

/// Notes that the older workflows of a pipeline's branch have become redundant, if the project wants them gone:
/// of branches other than the default one, for pushes and the API, never for schedules.
pub(crate) async fn note(tx: &mut Tx, message: &Envelope, pipeline: &PipelineCreated) -> Result<()> {
    let Some(branch) = branch(&pipeline.project, &pipeline.trigger, &pipeline.vcs) else { return Ok(()) };
    sqlx::query(
        "INSERT INTO conductor.newer_pipelines (pipeline_id, project_id, branch, pipeline_number, cause, trace) \
         SELECT $1, s.project_id, $3, $4, $5, $6 FROM conductor.project_settings s \
         WHERE s.project_id = $2 AND s.auto_cancel ON CONFLICT DO NOTHING",
    )
    .bind(pipeline.pipeline_id.uuid())
    .bind(pipeline.project.id.uuid())
    .bind(branch)
    .bind(pipeline.number)
    .bind(message.id.uuid())
    .bind(trace::after(message).map(|trace| trace.to_string()))
    .execute(tx.conn())
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Newer {
    pipeline_id: Uuid,
    project_id: Uuid,
    branch: String,
    pipeline_number: i64,
    cause: Uuid,
    trace: Option<String>,
}

/// Cancels what has become redundant. Safe to repeat, and by several processes at once.
pub(crate) async fn cancel_older(state: &State) -> Result<()> {
    let noted: Vec<Newer> = sqlx::query_as(
        "SELECT pipeline_id, project_id, branch, pipeline_number, cause, trace FROM conductor.newer_pipelines \
         ORDER BY noted_at LIMIT $1",
    )
    .bind(AT_ONCE)
    .fetch_all(state.store.pool())
    .await
    .map_err(Error::from)?;
    for newer in noted {
        let parent = newer.trace.as_deref().and_then(|trace| trace.parse().ok());
        trace::within(parent, cancel_of(state, &newer)).await?;
    }
    Ok(())
}

async fn cancel_of(state: &State, newer: &Newer) -> Result<()> {
    let older = {
        let mut conn = state.store.pool().acquire().await?;
        older(&mut conn, newer).await?
    };
    for id in older {
        let now = now();
        let mut tx = state.store.begin(&[key(id)]).await?;
        let Some(mut workflow) = store::workflow(tx.conn(), id).await? else { continue };
        if workflow.root.ended_at.is_none() {
            let open = store::open_jobs(tx.conn(), id).await?;
            let mut walk = Walk::new(workflow.root.clone(), now);
            walk.cancel_workflow(open, Some("superseded_by_newer_pipeline"))?;
            let cause = Cause { actor: me(), message: MessageId(newer.cause) };
            step::commit(&mut tx, &mut workflow, Vec::new(), &walk.conclude(), &cause, now).await?;
            tx.commit().await?;
            // If this is not answered, the sweep asks again: the commit above set a time for it.
            if let Err(error) = state.revoke(id).await {
                tracing::warn!(workflow.id = %id, error = &error as &dyn std::error::Error, "to be revoked later");
            }
        }
    }
    sqlx::query("DELETE FROM conductor.newer_pipelines WHERE pipeline_id = $1")
        .bind(newer.pipeline_id)
        .execute(state.store.pool())
        .await?;
    Ok(())
}

/// Running workflows of the branch from older pipelines, but for those that a person ran again.
async fn older(conn: &mut PgConnection, newer: &Newer) -> Result<Vec<WorkflowId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM conductor.workflows WHERE project_id = $1 AND branch = $2 AND ended_at IS NULL \
             AND pipeline_number < $3 AND NOT cancel AND (rerun_of IS NULL OR auto_rerun > 0) ORDER BY pipeline_number",
    )
    .bind(newer.project_id)
    .bind(&newer.branch)
    .bind(newer.pipeline_number)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}
