//! Workflows go with their pipeline: says which pipelines may go, and lets the workflows of those that went go too.

use crate::{NAME, State, error::Result as Done, me};
use anyhow::ensure;
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{
    Envelope, Event as _, NewEvent,
    retention::{PipelineExpired, SettledPipelines, WorkflowExpired},
};
use eventstore::{Key, Position, Store, Tx};
use ids::{JobId, OrgId, PipelineId, ProjectId, WorkflowId};
use retention::{Owner, Sealed, Unit, ids};
use serde_json::Value;
use sqlx::Row;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};
use tokio::sync::Notify;
use uuid::Uuid;

/// Workflows that go at once, and jobs, unless the first workflow alone has more.
const WORKFLOWS: i64 = 50;
const JOBS: i64 = 5_000;
/// Jobs that a message tells of: an id has 39 bytes there.
const TOLD: usize = 4_000;

impl State {
    /// Those of some pipelines whose workflows are over for good.
    pub(crate) async fn settled(&self, ask: SettledPipelines) -> Done<Vec<PipelineId>> {
        let last: Vec<(Uuid, Position)> = ask
            .pipelines
            .iter()
            .map(|last| (last.pipeline_id.uuid(), Position { xid: last.xid, seq: last.seq }))
            .collect();
        // What it has not heard of may have workflows yet.
        let known =
            bus::handled(&self.store, ("conductor.pipelines", "pipelines"), "pipeline", &last).await?;
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "SELECT p.id FROM unnest($1::uuid[]) AS p(id) WHERE NOT EXISTS ( \
                 SELECT 1 FROM conductor.workflows w WHERE w.pipeline_id = p.id AND ( \
                     w.ended_at IS NULL OR w.ended_at >= $2 OR w.created_at >= clock_timestamp() - $3 \
                     OR EXISTS (SELECT 1 FROM conductor.serial_members m JOIN conductor.jobs j ON j.id = m.job_id \
                                WHERE j.workflow_id = w.id)))",
        )
        .bind(known.into_iter().collect::<Vec<_>>())
        .bind(ask.before)
        .bind(self.reruns)
        .fetch_all(self.store.pool())
        .await?;
        Ok(ids.into_iter().map(PipelineId).collect())
    }
}

/// Notes pipelines that are gone.
pub(crate) struct Expired(pub(crate) Arc<Notify>);

#[async_trait]
impl Group for Expired {
    fn name(&self) -> &'static str {
        "conductor.expired"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[PipelineExpired::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        let ids = batch.iter().map(|message| Ok(message.body_as::<PipelineExpired>()?.pipeline_id.uuid()));
        let ids: Vec<Uuid> = ids.collect::<Result<_, Fault>>()?;
        sqlx::query("DELETE FROM conductor.newer_pipelines WHERE pipeline_id = ANY($1)")
            .bind(&ids)
            .execute(tx.conn())
            .await?;
        sqlx::query(
            "INSERT INTO conductor.expiring (id) SELECT DISTINCT pipeline_id FROM conductor.workflows \
             WHERE pipeline_id = ANY($1) ON CONFLICT DO NOTHING",
        )
        .bind(&ids)
        .execute(tx.conn())
        .await?;
        Ok(())
    }

    async fn after_commit(&self, _: &[Envelope]) {
        self.0.notify_one();
    }
}

/// Workflows of pipelines that are gone.
pub(crate) struct Workflows(pub(crate) Store);

#[async_trait]
impl Owner for Workflows {
    fn store(&self) -> &Store {
        &self.0
    }

    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>> {
        let found: Vec<(Uuid, i64)> = sqlx::query_as(
            "SELECT w.id, (SELECT coalesce(sum(value::bigint), 0)::bigint FROM jsonb_each_text(w.counts)) \
             FROM conductor.expiring x JOIN conductor.workflows w ON w.pipeline_id = x.id \
             WHERE w.ended_at IS NOT NULL AND w.id <> ALL($1) ORDER BY x.noted_at, w.id LIMIT $2",
        )
        .bind(skip.iter().copied().collect::<Vec<_>>())
        .bind(WORKFLOWS)
        .fetch_all(self.0.pool())
        .await?;
        let mut jobs = 0;
        let fits = found.into_iter().enumerate().take_while(|(place, (_, count))| {
            jobs += count;
            *place == 0 || jobs <= JOBS
        });
        Ok(fits.map(|(_, (id, _))| Unit { id, keys: vec![Key::new("workflow", id)] }).collect())
    }

    async fn states(&self, units: &[Unit]) -> anyhow::Result<Vec<retention::State>> {
        // The plan of a job is in the event with which it became ready, and in the pipeline's.
        let rows: Vec<(String, Uuid, Value)> = sqlx::query_as(
            "SELECT 'workflow', w.id, to_jsonb(w) FROM conductor.workflows w WHERE w.id = ANY($1) \
             UNION ALL SELECT 'job', j.id, to_jsonb(j) - 'plan' FROM conductor.jobs j WHERE j.workflow_id = ANY($1)",
        )
        .bind(ids(units))
        .fetch_all(self.0.pool())
        .await?;
        Ok(rows.into_iter().map(|(kind, id, row)| retention::State { kind, id, row }).collect())
    }

    async fn remove(&self, tx: &mut Tx, units: &[Unit], sealed: &Sealed) -> anyhow::Result<Vec<NewEvent>> {
        let ids = ids(units);
        sqlx::query(
            "DELETE FROM conductor.edges e USING conductor.jobs j WHERE j.workflow_id = ANY($1) AND e.upstream = j.id",
        )
        .bind(&ids)
        .execute(tx.conn())
        .await?;
        let jobs: Vec<(Uuid, Uuid)> = sqlx::query_as(
            "DELETE FROM conductor.jobs WHERE workflow_id = ANY($1) AND ended_at IS NOT NULL RETURNING workflow_id, id",
        )
        .bind(&ids)
        .fetch_all(tx.conn())
        .await?;
        let mut of: BTreeMap<Uuid, Vec<JobId>> = BTreeMap::new();
        for (workflow, job) in jobs {
            of.entry(workflow).or_default().push(JobId(job));
        }
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM conductor.jobs WHERE workflow_id = ANY($1)")
            .bind(&ids)
            .fetch_one(tx.conn())
            .await?;
        ensure!(left == 0, "{left} jobs have not ended");
        let rows = sqlx::query(
            "DELETE FROM conductor.workflows WHERE id = ANY($1) AND ended_at IS NOT NULL \
             RETURNING id, pipeline_id, project_id, (project ->> 'org_id')::uuid AS org_id",
        )
        .bind(&ids)
        .fetch_all(tx.conn())
        .await?;
        ensure!(rows.len() == ids.len(), "{} of {} workflows have ended", rows.len(), ids.len());
        let (mut events, mut pipelines) = (Vec::new(), Vec::new());
        for row in &rows {
            let (id, pipeline): (Uuid, Uuid) = (row.try_get("id")?, row.try_get("pipeline_id")?);
            let (org, project) = (OrgId(row.try_get("org_id")?), ProjectId(row.try_get("project_id")?));
            pipelines.push(pipeline);
            let jobs = of.remove(&id).unwrap_or_default();
            let mut parts: Vec<&[JobId]> = jobs.chunks(TOLD).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            events.extend(parts.into_iter().map(|part| {
                let body = WorkflowExpired {
                    workflow_id: WorkflowId(id),
                    pipeline_id: PipelineId(pipeline),
                    jobs: part.to_vec(),
                    archived: sealed.archived(Key::new("workflow", id)),
                };
                NewEvent::new("workflow", id, me(), &body)
                    .in_project(org, project)
                    .of_pipeline(PipelineId(pipeline))
            }));
        }
        sqlx::query(
            "DELETE FROM conductor.expiring x WHERE x.id = ANY($1) \
             AND NOT EXISTS (SELECT 1 FROM conductor.workflows w WHERE w.pipeline_id = x.id)",
        )
        .bind(pipelines)
        .execute(tx.conn())
        .await?;
        tracing::debug!(service = NAME, workflows = ids.len(), "workflows past their retention");
        Ok(events)
    }
}
