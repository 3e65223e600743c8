//! Serial groups: an aggregate of their own, because their jobs belong to many workflows (execution §7).
//!
//! A workflow says that a job wants its turn; the group decides, under its own lock, and says whose turn it is;
//! the workflow of that job goes on. Each of the three is a commit of its own, and no two locks are held together.

use crate::{
    State,
    consume::go_on,
    error::{Error, Result},
    key, me, now,
    step::{self, Cause},
    store,
};
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{
    Actor, Envelope, Event as _, NewEvent, Refusal, Request,
    conductor::{PassedOver, ReleaseTurn, TurnDone, TurnGiven, TurnWanted, WorkflowState},
};
use eventstore::{Key, Tx};
use ids::{JobId, OrgId, ProjectId, WorkflowId};
use model::{
    serial::{self, Command, Event, Group as SerialGroup, Member},
    workflow,
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use std::time::Duration;
use uuid::Uuid;

/// How long a job waits for its turn at most; then it is canceled.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 3600);
/// Jobs of a sweep.
const AT_ONCE: i64 = 100;
/// Why a job was not run.
const PASSED_OVER: &str = "newer_pipeline_in_serial_group";

/// The id of a group: the same in every process.
fn id_of(org: OrgId, group: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(org.uuid().as_bytes());
    hash.update(group.as_bytes());
    let digest = hash.finalize();
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(first).into_uuid()
}

fn lock(id: Uuid) -> Key {
    Key::new("serial_group", id)
}

/// What a workflow says of one of its jobs.
struct News {
    group: Uuid,
    project: ProjectId,
    command: Command,
}

fn news(message: &Envelope) -> Result<News> {
    let (Some(org), Some(project)) = (message.org_id, message.project_id) else {
        return Err(Error::Message(format!("{} {} belongs to no project", message.kind, message.id)));
    };
    let (group, command) = if message.is::<TurnWanted>() {
        let wanted: TurnWanted = message.body_as()?;
        let member = Member {
            job: wanted.job_id,
            workflow: wanted.workflow_id,
            project,
            pipeline_number: wanted.pipeline_number,
        };
        (wanted.group, Command::Arrive(member))
    } else {
        let done: TurnDone = message.body_as()?;
        (done.group, Command::Leave(done.job_id))
    };
    Ok(News { group: id_of(org, &group), project, command })
}

/// Decides whose turn it is.
pub(crate) struct Groups;

#[async_trait]
impl Group for Groups {
    fn name(&self) -> &'static str {
        "conductor.serial"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[TurnWanted::TYPE, TurnDone::TYPE]
    }

    fn locks(&self, message: &Envelope) -> Vec<Key> {
        news(message).map(|news| lock(news.group)).into_iter().collect()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let News { group, project, command } = news(message)?;
            let org = message.org_id.unwrap_or(OrgId(Uuid::nil()));
            let cause = Cause { actor: me(), message: message.id };
            decide(tx, group, (org, project), &command, &cause).await?;
        }
        Ok(())
    }
}

/// Lets a group decide, stores what follows and says it. Its lock is held.
async fn decide(
    tx: &mut Tx,
    group: Uuid,
    (org, project): (OrgId, ProjectId),
    command: &Command,
    cause: &Cause,
) -> Result<Vec<Event>> {
    let state = load(tx.conn(), group).await?;
    let events = serial::decide(&state, command);
    let mut published = Vec::new();
    for event in &events {
        save(tx.conn(), group, event).await?;
        let new = match event {
            Event::TurnGiven(member) => {
                let body = TurnGiven { job_id: member.job, workflow_id: member.workflow };
                NewEvent::new("serial_group", group, cause.actor.clone(), &body)
                    .in_project(org, member.project)
            }
            Event::PassedOver(member) => {
                let body = PassedOver { job_id: member.job, workflow_id: member.workflow };
                NewEvent::new("serial_group", group, cause.actor.clone(), &body).in_project(org, project)
            }
            // Who waits, and who waits no longer, is seen in the rows.
            Event::Joined(_) | Event::Left(_) | Event::Released(_) => continue,
        };
        published.push(new.caused_by(cause.message));
    }
    tx.append(&published).await?;
    Ok(events)
}

async fn load(conn: &mut PgConnection, group: Uuid) -> Result<SerialGroup> {
    let rows: Vec<(Uuid, Uuid, Uuid, i64, bool)> = sqlx::query_as(
        "SELECT job_id, workflow_id, project_id, pipeline_number, holds FROM conductor.serial_members \
         WHERE group_id = $1 ORDER BY seq",
    )
    .bind(group)
    .fetch_all(conn)
    .await?;
    let mut state = SerialGroup::default();
    for (job, workflow, project, pipeline_number, holds) in rows {
        let member = Member {
            job: JobId(job),
            workflow: WorkflowId(workflow),
            project: ProjectId(project),
            pipeline_number,
        };
        if holds {
            state.holder = Some(member);
        } else {
            state.line.push(member);
        }
    }
    Ok(state)
}

async fn save(conn: &mut PgConnection, group: Uuid, event: &Event) -> Result<()> {
    match event {
        Event::Joined(member) | Event::TurnGiven(member) => {
            sqlx::query(
                "INSERT INTO conductor.serial_members (group_id, job_id, workflow_id, project_id, pipeline_number, holds) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (group_id, job_id) DO UPDATE SET holds = $6",
            )
            .bind(group)
            .bind(member.job.uuid())
            .bind(member.workflow.uuid())
            .bind(member.project.uuid())
            .bind(member.pipeline_number)
            .bind(matches!(event, Event::TurnGiven(_)))
            .execute(conn)
            .await?;
        }
        Event::Left(member) | Event::Released(member) => {
            sqlx::query("DELETE FROM conductor.serial_members WHERE group_id = $1 AND job_id = $2")
                .bind(group)
                .bind(member.job.uuid())
                .execute(conn)
                .await?;
        }
        Event::PassedOver(_) => {}
    }
    Ok(())
}

/// Takes what a group decided to the workflow of the job.
pub(crate) struct Turns;

fn decided(message: &Envelope) -> Result<(WorkflowId, JobId, workflow::Command)> {
    if message.is::<TurnGiven>() {
        let TurnGiven { job_id, workflow_id } = message.body_as()?;
        Ok((workflow_id, job_id, workflow::Command::TurnGiven))
    } else {
        let PassedOver { job_id, workflow_id } = message.body_as()?;
        Ok((workflow_id, job_id, workflow::Command::PassedOver { reason: PASSED_OVER.to_owned() }))
    }
}

#[async_trait]
impl Group for Turns {
    fn name(&self) -> &'static str {
        "conductor.turns"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[TurnGiven::TYPE, PassedOver::TYPE]
    }

    fn locks(&self, message: &Envelope) -> Vec<Key> {
        decided(message).map(|(workflow, ..)| key(workflow)).into_iter().collect()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let (workflow, job, command) = decided(message)?;
            go_on(tx, message, workflow, job, &command).await?;
        }
        Ok(())
    }
}

/// Place in line from 1 (0: it holds the lock), how many wait, who holds the lock, and the group's key.
pub(crate) struct Place {
    pub place: i64,
    pub line: i64,
    pub holder: Option<JobId>,
    pub holder_name: Option<String>,
}

/// Where a job stands in its serial group, once it has arrived there.
pub(crate) async fn place(conn: &mut PgConnection, job: JobId) -> Result<Option<Place>> {
    let row: Option<(i64, i64, Option<Uuid>, Option<String>)> = sqlx::query_as(
        "SELECT CASE WHEN m.holds THEN 0 ELSE (SELECT count(*) FROM conductor.serial_members a \
                    WHERE a.group_id = m.group_id AND NOT a.holds AND a.seq <= m.seq) END, \
             (SELECT count(*) FROM conductor.serial_members a WHERE a.group_id = m.group_id AND NOT a.holds), \
             h.job_id, j.name \
         FROM conductor.serial_members m \
         LEFT JOIN conductor.serial_members h ON h.group_id = m.group_id AND h.holds \
         LEFT JOIN conductor.jobs j ON j.id = h.job_id WHERE m.job_id = $1",
    )
    .bind(job.uuid())
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|(place, line, holder, holder_name)| Place {
        place,
        line,
        holder: holder.map(Into::into),
        holder_name,
    }))
}

impl State {
    /// Takes the lock from the job that holds it: the job goes on, the next may start.
    pub(crate) async fn release_turn(&self, request: &Request, ask: ReleaseTurn) -> Result<WorkflowState> {
        let id = self.workflow_of(ask.job_id).await?;
        self.permit(request, id, model::permission::Permission::Cancel).await?;
        let (workflow, group) = {
            let mut conn = self.store.pool().acquire().await?;
            let workflow =
                store::workflow(&mut conn, id).await?.ok_or_else(|| Refusal::not_found("workflow"))?;
            let groups = store::serial_groups(&mut conn, &[ask.job_id]).await?;
            let not = || Refusal::new("not_holding", "the job belongs to no serial group");
            (workflow, groups.get(&ask.job_id).cloned().ok_or_else(not)?)
        };
        let (org, project) = (workflow.project.org_id, workflow.project.id);
        let group = id_of(org, &group);
        let mut tx = match self.begin(request, &[lock(group)]).await? {
            crate::commands::Begun::Answered(answer) => return Ok(answer),
            crate::commands::Begun::New(tx) => tx,
        };
        if load(tx.conn(), group).await?.holder.is_none_or(|holder| holder.job != ask.job_id) {
            let message = "the job does not hold the lock of its serial group";
            return Err(Refusal::new("not_holding", message).into());
        }
        let cause = Cause { actor: request.actor.clone(), message: request.id };
        decide(&mut tx, group, (org, project), &Command::Leave(ask.job_id), &cause).await?;
        self.finish(request, tx, workflow.state()).await
    }
}

/// Cancels jobs that have waited for their turn longer than they may.
pub(crate) async fn end_long_waits(state: &State) -> Result<()> {
    let late: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT id, workflow_id FROM conductor.jobs WHERE turn = 'wanted' AND ended_at IS NULL \
             AND turn_wanted_at < clock_timestamp() - $1 ORDER BY turn_wanted_at LIMIT $2",
    )
    .bind(LONGEST_WAIT)
    .bind(AT_ONCE)
    .fetch_all(state.store.pool())
    .await?;
    for (job, workflow) in late {
        let (id, now) = (WorkflowId(workflow), now());
        let mut tx = state.store.begin(&[key(id)]).await?;
        let (Some(mut workflow), Some(job)) =
            (store::workflow(tx.conn(), id).await?, store::job(tx.conn(), id, JobId(job)).await?)
        else {
            continue;
        };
        if job.turn != workflow::Turn::Wanted || job.status.is_terminal() {
            continue;
        }
        let command = workflow::Command::Cancel { reason: Some("serial_wait_timeout".to_owned()) };
        let changes = step::decide(&mut tx, &workflow, job, &command, now).await?;
        let cause = Cause { actor: Actor::service(crate::NAME), ..Cause::timer() };
        step::commit(&mut tx, &mut workflow, Vec::new(), &changes, &cause, now).await?;
        tx.commit().await?;
    }
    Ok(())
}
