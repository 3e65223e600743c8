//! Why does a job wait? Answered from the rows, in words that say what to do.

use crate::{
    State,
    error::{Error, Result},
    me, serial, store,
};
use contracts::{
    Refusal,
    conductor::{ExplainWait, Explanation, Wait},
    dispatcher::ExplainJob,
};
use ids::{JobId, Timestamp};
use model::{
    status::JobStatus,
    workflow::{Job, Turn},
};
use sqlx::PgConnection;
use uuid::Uuid;

/// Upstream jobs that are named one by one.
const NAMED: usize = 5;

impl State {
    /// Explains where a job stands.
    pub(crate) async fn explain(&self, ask: ExplainWait) -> Result<Explanation> {
        let workflow_id = self.workflow_of(ask.job_id).await?;
        let mut conn = self.store.pool().acquire().await?;
        let job =
            store::job(&mut conn, workflow_id, ask.job_id).await?.ok_or_else(|| Refusal::not_found("job"))?;
        let (name, since, group): (String, Option<Timestamp>, Option<String>) = sqlx::query_as(
            "SELECT j.name, coalesce(j.ended_at, j.started_at, j.since, w.created_at), j.plan ->> 'serial_group' \
             FROM conductor.jobs j JOIN conductor.workflows w ON w.id = j.workflow_id WHERE j.id = $1",
        )
        .bind(job.id.uuid())
        .fetch_one(&mut *conn)
        .await?;
        let waits = match job.status {
            JobStatus::Blocked => requirements(&mut conn, &job, since).await?,
            JobStatus::OnHold => vec![approval(&job, &name, since)],
            JobStatus::Queued if job.turn == Turn::Wanted => {
                vec![turn(&mut conn, &job, &group.unwrap_or_default(), since).await?]
            }
            JobStatus::Queued | JobStatus::NotRunning | JobStatus::Running => {
                // The connection goes back: the answer may need one.
                drop(conn);
                self.at_dispatcher(&job).await
            }
            _ => Vec::new(),
        };
        let reason = job.reason.clone();
        Ok(Explanation { job_id: job.id, workflow_id, name, status: job.status, since, waits, reason })
    }

    /// What the job's tasks wait for. Without an answer the question is still answered.
    async fn at_dispatcher(&self, job: &Job) -> Vec<Wait> {
        match self.bus.ask(&me(), &ExplainJob { job_id: job.id }).await {
            Ok(waits) => waits,
            Err(error) => {
                tracing::debug!(job.id = %job.id, %error, "the dispatcher did not explain");
                let text = "it was handed to the dispatcher, which does not say more at the moment";
                vec![Wait { kind: "other".into(), text: text.into(), ..Wait::default() }]
            }
        }
    }
}

#[derive(sqlx::FromRow)]
struct Upstream {
    id: Uuid,
    name: String,
    status: String,
    accepts: Vec<String>,
}

/// The upstream jobs that have not ended, one entry for each of the first and one for the rest.
async fn requirements(conn: &mut PgConnection, job: &Job, since: Option<Timestamp>) -> Result<Vec<Wait>> {
    let open: Vec<Upstream> = sqlx::query_as(
        "SELECT u.id, u.name, u.status, e.accepts FROM conductor.edges e JOIN conductor.jobs u ON u.id = e.upstream \
         WHERE e.job = $1 AND u.ended_at IS NULL ORDER BY u.position",
    )
    .bind(job.id.uuid())
    .fetch_all(conn)
    .await
    .map_err(Error::from)?;
    let (named, rest) = open.split_at(open.len().min(NAMED));
    let mut waits: Vec<Wait> = named
        .iter()
        .map(|up| Wait {
            kind: "requirement".into(),
            text: format!("{} has to end with {}; it is {}", up.name, up.accepts.join(" or "), up.status),
            since,
            jobs: vec![up.id.into()],
            ..Wait::default()
        })
        .collect();
    if !rest.is_empty() {
        let jobs: Vec<JobId> = rest.iter().map(|up| up.id.into()).collect();
        let text = format!("{} more jobs have to end", jobs.len());
        waits.push(Wait { kind: "requirement".into(), text, since, jobs, ..Wait::default() });
    }
    Ok(waits)
}

fn approval(job: &Job, name: &str, since: Option<Timestamp>) -> Wait {
    Wait {
        kind: "approval".into(),
        text: format!(
            "a person has to approve {name}: `gantry approve`, or its button on the workflow's page"
        ),
        since,
        jobs: vec![job.id],
        ..Wait::default()
    }
}

async fn turn(conn: &mut PgConnection, job: &Job, group: &str, since: Option<Timestamp>) -> Result<Wait> {
    let place = serial::place(conn, job.id).await?;
    let text = match &place {
        Some(serial::Place { place, line, holder_name: Some(holder), .. }) => {
            format!(
                "it is number {place} of {line} in line for the serial group {group}, whose lock {holder} holds"
            )
        }
        Some(_) => format!("its turn in the serial group {group} is on its way"),
        None => format!("it asks for its turn in the serial group {group}"),
    };
    let count = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    Ok(Wait {
        kind: "serial_group".into(),
        text,
        since,
        place: place.as_ref().and_then(|place| count(place.place)),
        line: place.as_ref().and_then(|place| count(place.line)),
        jobs: place.and_then(|place| place.holder).into_iter().collect(),
        ..Wait::default()
    })
}
