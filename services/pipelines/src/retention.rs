//! Pipelines whose last workflow ended long ago: they are archived, and everybody is told that they are gone.

use crate::{NAME, State};
use anyhow::ensure;
use async_trait::async_trait;
use bus::{failed, once::Failure};
use contracts::{
    Actor, NewEvent, Refusal, Request,
    retention::{
        Candidate, ExpiringProject, PipelineExpired, RetentionReport, RunRetention, SettledPipelines,
    },
};
use eventstore::{Key, Store, Tx};
use ids::{OrgId, PipelineId, ProjectId, Timestamp};
use retention::{Owner, Sealed, Sweeper, Unit};
use serde_json::Value;
use sqlx::Row;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// Candidates about which the conductor is asked at once.
const PAGE: i64 = 100;
/// How long somebody waits for what they asked for; the rest is done when they ask again.
const ASKED: Duration = Duration::from_secs(8);

/// Sweeps for this service.
pub(crate) fn sweeper(state: &State) -> Sweeper {
    Sweeper::new(Arc::new(Pipelines(state.clone())), Arc::clone(&state.blobs))
}

struct Pipelines(State);

/// A pipeline that is old enough.
struct Old {
    id: Uuid,
    slug: String,
    number: i64,
    created_at: Timestamp,
    last: Candidate,
}

/// Where the next page begins.
type After = (Timestamp, Uuid);

impl State {
    /// Before when pipelines are past their retention; `None`: they never are.
    async fn expired_before(&self) -> sqlx::Result<Option<Timestamp>> {
        let Some(keep) = self.keep else { return Ok(None) };
        let before =
            sqlx::query_scalar("SELECT clock_timestamp() - $1").bind(keep).fetch_one(self.store.pool());
        Ok(Some(before.await?))
    }

    /// The next pipelines of before that time, the oldest first, and those of them that may go; `None`: there are no more.
    async fn candidates(
        &self,
        before: Timestamp,
        skip: &[Uuid],
        after: Option<After>,
    ) -> anyhow::Result<Option<(After, Vec<Old>)>> {
        // One that waits for its continuation still changes.
        let rows = sqlx::query(
            "SELECT p.id, p.project ->> 'slug' AS slug, p.number, p.created_at, e.xid::text AS xid, e.seq
             FROM pipelines.pipelines p CROSS JOIN LATERAL (
                 SELECT xid, seq FROM pipelines.events WHERE aggregate_kind = 'pipeline' AND aggregate_id = p.id
                 ORDER BY version DESC LIMIT 1) e
             WHERE p.created_at < $1 AND p.id <> ALL($2) AND ($3::timestamptz IS NULL OR (p.created_at, p.id) > ($3, $4))
               AND (p.state <> 'setup' OR p.created_at < now() - make_interval(hours => $5))
             ORDER BY p.created_at, p.id LIMIT $6",
        )
        .bind(before)
        .bind(skip)
        .bind(after.map(|(at, _)| at))
        .bind(after.map_or_else(Uuid::nil, |(_, id)| id))
        .bind(crate::continuation::HOURS)
        .bind(PAGE)
        .fetch_all(self.store.pool())
        .await?;
        let old = rows
            .iter()
            .map(|row| {
                let id: Uuid = row.try_get("id")?;
                let xid: String = row.try_get("xid")?;
                let last =
                    Candidate { pipeline_id: PipelineId(id), xid: xid.parse()?, seq: row.try_get("seq")? };
                let created_at = row.try_get("created_at")?;
                anyhow::Ok(Old {
                    id,
                    slug: row.try_get("slug")?,
                    number: row.try_get("number")?,
                    created_at,
                    last,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let Some(end) = old.last().map(|last| (last.created_at, last.id)) else { return Ok(None) };
        let ask = SettledPipelines { pipelines: old.iter().map(|old| old.last.clone()).collect(), before };
        let may: HashSet<PipelineId> = self.bus.ask(&Actor::service(NAME), &ask).await?.into_iter().collect();
        let may = old.into_iter().filter(|old| may.contains(&PipelineId(old.id))).collect();
        Ok(Some((end, may)))
    }
}

#[async_trait]
impl Owner for Pipelines {
    fn store(&self) -> &Store {
        &self.0.store
    }

    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>> {
        let Some(before) = self.0.expired_before().await? else { return Ok(Vec::new()) };
        let skip: Vec<Uuid> = skip.iter().copied().collect();
        let mut after = None;
        while let Some((end, may)) = self.0.candidates(before, &skip, after).await? {
            if !may.is_empty() {
                let unit = |old: Old| Unit { id: old.id, keys: vec![Key::new("pipeline", old.id)] };
                return Ok(may.into_iter().map(unit).collect());
            }
            after = Some(end);
        }
        Ok(Vec::new())
    }

    async fn states(&self, units: &[Unit]) -> anyhow::Result<Vec<retention::State>> {
        let ids = retention::ids(units);
        // What a person wrote is in the event's personal part.
        let rows: Vec<(Uuid, Value)> = sqlx::query_as(
            "SELECT id, to_jsonb(p) - 'subject' FROM pipelines.pipelines p WHERE id = ANY($1) ORDER BY id",
        )
        .bind(ids)
        .fetch_all(self.0.store.pool())
        .await?;
        Ok(rows.into_iter().map(|(id, row)| retention::State { kind: "pipeline".into(), id, row }).collect())
    }

    async fn remove(&self, tx: &mut Tx, units: &[Unit], sealed: &Sealed) -> anyhow::Result<Vec<NewEvent>> {
        let ids = retention::ids(units);
        let rows = sqlx::query(
            "WITH gone AS (DELETE FROM pipelines.pipelines WHERE id = ANY($1)
                           RETURNING id, project_id, (project ->> 'org_id')::uuid AS org_id, number),
                  noted AS (INSERT INTO pipelines.expired (id, project_id, number) SELECT id, project_id, number FROM gone)
             SELECT * FROM gone",
        )
        .bind(&ids)
        .fetch_all(tx.conn())
        .await?;
        ensure!(rows.len() == ids.len(), "{} of {} pipelines are there", rows.len(), ids.len());
        rows.iter()
            .map(|row| {
                let id: Uuid = row.try_get("id")?;
                let project_id = ProjectId(row.try_get("project_id")?);
                let body = PipelineExpired {
                    pipeline_id: PipelineId(id),
                    project_id,
                    number: row.try_get("number")?,
                    archived: sealed.archived(Key::new("pipeline", id)),
                };
                Ok(NewEvent::new("pipeline", id, Actor::service(NAME), &body)
                    .in_project(OrgId(row.try_get("org_id")?), project_id)
                    .of_pipeline(PipelineId(id)))
            })
            .collect()
    }
}

/// Looks, or lets go what is found now.
pub(crate) async fn run(state: &State, _: &Request, ask: RunRetention) -> Result<RetentionReport, Failure> {
    let refused = |error: anyhow::Error| Failure(failed(NAME)(error));
    let Some(before) = state.expired_before().await? else {
        let message = "pipelines are kept for ever: set [retention] pipelines, for example to \"400d\"";
        return Err(Refusal::new("retention_off", message).into());
    };
    let mut report = look(state, before).await.map_err(refused)?;
    if ask.dry_run {
        return Ok(report);
    }
    match sweeper(state).sweep(Some(ASKED)).await.map_err(refused)? {
        Some(done) => {
            report.pipelines = done.gone;
            report.more = done.more || done.failed > 0;
            Ok(report)
        }
        None => {
            let message = "another sweep is under way: ask again in a moment";
            Err(Refusal::new("retention_running", message).into())
        }
    }
}

async fn look(state: &State, before: Timestamp) -> anyhow::Result<RetentionReport> {
    let began = Instant::now();
    let mut projects: BTreeMap<String, ExpiringProject> = BTreeMap::new();
    let (mut after, mut more) = (None, false);
    while let Some((end, may)) = state.candidates(before, &[], after).await? {
        after = Some(end);
        for Old { slug, number, .. } in may {
            let project = projects.entry(slug.clone()).or_insert(ExpiringProject {
                project: slug,
                pipelines: 0,
                first: number,
                last: number,
            });
            project.pipelines += 1;
            project.first = project.first.min(number);
            project.last = project.last.max(number);
        }
        if began.elapsed() >= ASKED {
            more = true;
            break;
        }
    }
    let mut projects: Vec<_> = projects.into_values().collect();
    projects.sort_by_key(|project| std::cmp::Reverse(project.pipelines));
    let pipelines = projects.iter().map(|project| project.pipelines).sum();
    // A message holds some thousands.
    projects.truncate(1000);
    Ok(RetentionReport { before, pipelines, projects, more })
}
