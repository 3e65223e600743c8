//! The scheduler against a real database, with a dispatcher that says what the test wants.

use axum::{
    body::Body,
    http::{Request as Call, StatusCode},
};
use bus::{Bus, Responder};
use compute::{Compute, Error, Identity, Local, LocalConfig, Phase, Placement, Running};
use contracts::{
    Actor, Event, NewEvent, Request, RequestError,
    dispatcher::{PlacementNews, PlacementReport, ReportPlacements, TaskFinished, TaskQueued},
    request::Ask,
    retention::{Archived, WorkflowExpired},
};
use eventstore::{Key, NO_MIGRATIONS, Store};
use gantry_scheduler::{Config, Deps, Service};
use ids::{JobId, TaskId, Timestamp, WorkflowId};
use kit::keys::{Keys, PlacementClaims};
use model::status::JobStatus;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(30);

/// Compute with a memory: agents by name, how often each was really started, and whether starting works.
#[derive(Default)]
struct Fake(Mutex<Inner>, tokio::sync::Notify);

#[derive(Default)]
struct Inner {
    /// Agents are on other machines, and show who they are as `NAME/START`.
    remote: bool,
    agents: BTreeMap<String, Phase>,
    tokens: BTreeMap<String, String>,
    starts: usize,
    stopped: Vec<String>,
    broken: bool,
    /// Of these nobody says anything.
    silent: Vec<String>,
}

#[async_trait::async_trait]
impl Compute for Fake {
    async fn start(&self, placement: &Placement) -> Result<(), Error> {
        testkit::until("an answer", LIMIT * 2, || async {
            !self.0.lock().unwrap().silent.contains(&placement.name)
        })
        .await;
        let mut inner = self.0.lock().unwrap();
        if inner.broken {
            return Err(Error::Stuck(placement.name.clone()));
        }
        if inner.agents.insert(placement.name.clone(), Phase::Runs) != Some(Phase::Runs) {
            inner.starts += 1;
        }
        inner.tokens.insert(placement.name.clone(), placement.token.clone());
        Ok(())
    }

    async fn stop(&self, name: &str) -> Result<(), Error> {
        let mut inner = self.0.lock().unwrap();
        inner.stopped.push(name.to_owned());
        inner.agents.entry(name.to_owned()).and_modify(|phase| *phase = Phase::Ended);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Running>, Error> {
        let inner = self.0.lock().unwrap();
        if inner.broken {
            return Err(Error::Scheduler("the cluster is away".to_owned()));
        }
        let since = SystemTime::now();
        Ok(inner
            .agents
            .iter()
            .map(|(name, phase)| Running { name: name.clone(), phase: phase.clone(), since, unsent: false })
            .collect())
    }

    fn resumes(&self) -> bool {
        !self.0.lock().unwrap().remote
    }

    async fn changed(&self) {
        self.1.notified().await
    }

    async fn identify(&self, proof: &str, _: Timestamp) -> Result<Identity, Error> {
        let (placement, instance) =
            proof.split_once('/').ok_or_else(|| Error::Identity("it is no proof".to_owned()))?;
        Ok(Identity { placement: placement.to_owned(), instance: instance.to_owned() })
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.0.lock().unwrap().agents.remove(name);
        Ok(())
    }
}

/// What the dispatcher was told of placements.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<PlacementReport>>>);

#[async_trait::async_trait]
impl Responder for Told {
    async fn respond(&self, req: Request) -> Result<serde_json::Value, RequestError> {
        assert_eq!(req.name, ReportPlacements::NAME);
        let asked: ReportPlacements = serde_json::from_value(req.body).unwrap();
        self.0.lock().unwrap().extend(asked.placements);
        Ok(serde_json::Value::Null)
    }
}

struct World {
    told: Told,
    pool: sqlx::PgPool,
    bus: Bus,
    dispatcher: Store,
    keys: Keys,
    compute: Arc<dyn Compute>,
    running: Option<(Service, CancellationToken)>,
}

impl World {
    async fn new(compute: Arc<dyn Compute>) -> Self {
        let pool = testkit::postgres().await.pool;
        let bus = Bus::local(pool.clone());
        let dispatcher = Store::open(pool.clone(), "dispatcher", &NO_MIGRATIONS).await.unwrap();
        bus.register_source(&dispatcher);
        let told = Told::default();
        bus.respond("dispatcher", Arc::new(told.clone()));
        let mut world =
            Self { told, pool, bus, dispatcher, keys: Keys::from_bytes([9; 32]), compute, running: None };
        world.boot().await;
        world
    }

    async fn boot(&mut self) {
        let stop = CancellationToken::new();
        let deps = Deps {
            pool: self.pool.clone(),
            bus: self.bus.clone(),
            keys: self.keys.clone(),
            compute: Arc::clone(&self.compute),
            config: Config {
                linger: Duration::from_millis(50),
                watch: Duration::from_millis(50),
                ..Config::default()
            },
        };
        self.running = Some((gantry_scheduler::start(deps, stop.clone()).await.unwrap(), stop));
    }

    async fn halt(&mut self) {
        if let Some((service, stop)) = self.running.take() {
            stop.cancel();
            service.join().await.unwrap();
        }
    }

    async fn say<E: Event>(&self, task: TaskId, body: &E) {
        let mut tx = self.dispatcher.begin(&[Key::new("task", task.uuid())]).await.unwrap();
        tx.append(&[NewEvent::new("task", task.uuid(), Actor::service("dispatcher"), body)]).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn queue(&self, task_id: TaskId, epoch: i64) {
        let (job_id, workflow_id) = (JobId::new(), WorkflowId::new());
        let body = TaskQueued {
            task_id,
            job_id,
            workflow_id,
            index: 0,
            epoch,
            resource_class: String::new(),
            demand: None,
        };
        self.say(task_id, &body).await;
    }

    async fn finish(&self, task_id: TaskId, epoch: i64) {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let (job_id, status) = (JobId::new(), JobStatus::Success);
        self.say(task_id, &TaskFinished { task_id, job_id, index: 0, epoch, status, reason: None, at }).await;
    }

    /// What the scheduler answers an agent that shows this.
    async fn identify(&self, proof: &str) -> (StatusCode, serde_json::Value) {
        let (service, _) = self.running.as_ref().unwrap();
        let body = serde_json::to_vec(&agent_api::Identify { proof: proof.to_owned() }).unwrap();
        let call = Call::post("/v1/placement").header("content-type", "application/json");
        let answer = service.agent_router().oneshot(call.body(Body::from(body)).unwrap()).await.unwrap();
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn hears(&self, what: &str, wanted: impl Fn(&PlacementReport) -> bool) {
        testkit::until(what, LIMIT, || async { self.told.0.lock().unwrap().iter().any(&wanted) }).await;
    }

    async fn states(&self) -> Vec<(i64, String)> {
        sqlx::query_as("SELECT epoch, state FROM scheduler.placements ORDER BY epoch")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    async fn alive(&self, name: &str) -> Option<bool> {
        self.compute
            .list()
            .await
            .unwrap()
            .into_iter()
            .find(|agent| agent.name == name)
            .map(|agent| agent.alive())
    }

    async fn reaches(&self, expected: &[(i64, &str)]) {
        testkit::until(&format!("placements are {expected:?}"), LIMIT, || async {
            let states = self.states().await;
            states.iter().map(|(epoch, state)| (*epoch, state.as_str())).collect::<Vec<_>>() == expected
        })
        .await;
    }
}

#[tokio::test]
async fn a_queued_task_gets_an_agent_and_a_finished_one_loses_it() {
    let fake = Arc::new(Fake::default());
    let mut world = World::new(fake.clone()).await;
    let task = TaskId::new();
    let name = Placement::name_of(task, 1);
    world.queue(task, 1).await;
    world.reaches(&[(1, "started")]).await;
    assert_eq!(world.alive(&name).await, Some(true));
    let token = fake.0.lock().unwrap().tokens[&name].clone();
    let claims: PlacementClaims = world.keys.open_claims("placement", &token).unwrap();
    assert_eq!(claims, PlacementClaims { task_id: task, epoch: 1 });
    world.finish(task, 1).await;
    world.reaches(&[(1, "gone")]).await;
    assert_eq!(world.alive(&name).await, None);
    world.halt().await;
}

#[tokio::test]
async fn a_new_epoch_ends_the_agent_of_the_old_one() {
    let mut world = World::new(Arc::new(Fake::default())).await;
    let task = TaskId::new();
    world.queue(task, 1).await;
    world.reaches(&[(1, "started")]).await;
    world.queue(task, 2).await;
    world.reaches(&[(1, "gone"), (2, "started")]).await;
    assert_eq!(world.alive(&Placement::name_of(task, 1)).await, None);
    world.halt().await;
}

#[tokio::test]
async fn after_a_restart_what_was_wanted_is_started_and_nothing_twice() {
    let fake = Arc::new(Fake::default());
    let mut world = World::new(fake.clone()).await;
    let (one, two) = (TaskId::new(), TaskId::new());
    world.queue(one, 1).await;
    world.reaches(&[(1, "started")]).await;
    world.halt().await;
    // What was committed without waiting for the disk may be lost: the agent runs and the row does not know.
    sqlx::query("UPDATE scheduler.placements SET state = 'wanted', next_action_at = now()")
        .execute(&world.pool)
        .await
        .unwrap();
    world.queue(two, 1).await;
    world.boot().await;
    world.reaches(&[(1, "started"), (1, "started")]).await;
    assert_eq!(fake.0.lock().unwrap().starts, 2);
    world.halt().await;
}

#[tokio::test]
async fn a_failing_start_is_tried_again() {
    let fake = Arc::new(Fake::default());
    fake.0.lock().unwrap().broken = true;
    let mut world = World::new(fake.clone()).await;
    world.queue(TaskId::new(), 1).await;
    testkit::until("an attempt fails", LIMIT, || async {
        let attempts: Vec<(i32,)> =
            sqlx::query_as("SELECT attempts FROM scheduler.placements").fetch_all(&world.pool).await.unwrap();
        attempts.iter().any(|(attempts,)| *attempts > 0)
    })
    .await;
    fake.0.lock().unwrap().broken = false;
    world.reaches(&[(1, "started")]).await;
    world.halt().await;
}

#[tokio::test]
async fn a_start_that_nobody_answers_holds_up_no_other() {
    let fake = Arc::new(Fake::default());
    let silent = TaskId::new();
    fake.0.lock().unwrap().silent.push(Placement::name_of(silent, 1));
    let mut world = World::new(fake.clone()).await;
    world.queue(silent, 1).await;
    world.queue(TaskId::new(), 2).await;
    world.reaches(&[(1, "wanted"), (2, "started")]).await;
    world.queue(TaskId::new(), 3).await;
    world.reaches(&[(1, "wanted"), (2, "started"), (3, "started")]).await;
    fake.0.lock().unwrap().silent.clear();
    world.reaches(&[(1, "started"), (2, "started"), (3, "started")]).await;
    assert_eq!(fake.0.lock().unwrap().starts, 3);
    world.halt().await;
}

#[tokio::test]
async fn an_agent_that_died_is_cleaned_up_and_started_again_to_report() {
    let fake = Arc::new(Fake::default());
    let mut world = World::new(fake.clone()).await;
    let task = TaskId::new();
    let name = Placement::name_of(task, 1);
    world.queue(task, 1).await;
    world.reaches(&[(1, "started")]).await;
    let dies = || {
        fake.0.lock().unwrap().agents.insert(name.clone(), Phase::Ended);
    };
    for starts in [2, 3] {
        dies();
        testkit::until("it is started again", LIMIT, || async { fake.0.lock().unwrap().starts == starts })
            .await;
    }
    dies();
    testkit::until("its remains are ended", LIMIT, || async { fake.0.lock().unwrap().stopped.len() == 3 })
        .await;
    assert_eq!(fake.0.lock().unwrap().starts, 3, "not for ever");
    world.halt().await;
}

/// A cluster with one task that was placed.
async fn remote() -> (Arc<Fake>, World, TaskId, String) {
    let fake = Arc::new(Fake::default());
    fake.0.lock().unwrap().remote = true;
    let world = World::new(fake.clone()).await;
    let task = TaskId::new();
    world.queue(task, 1).await;
    world.reaches(&[(1, "started")]).await;
    (fake, world, task, Placement::name_of(task, 1))
}

#[tokio::test]
async fn the_first_start_that_shows_itself_has_the_token() {
    let (_, mut world, task, name) = remote().await;
    let (status, answer) = world.identify(&format!("{name}/first")).await;
    assert_eq!(status, StatusCode::OK);
    let token = answer["token"].as_str().unwrap();
    let claims: PlacementClaims = world.keys.open_claims("placement", token).unwrap();
    assert_eq!(claims, PlacementClaims { task_id: task, epoch: 1 });
    let (again, repeated) = world.identify(&format!("{name}/first")).await;
    assert_eq!((again, repeated["token"].as_str()), (StatusCode::OK, Some(token)), "an answer may be lost");

    let (status, answer) = world.identify(&format!("{name}/second")).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::CONFLICT, Some("stale_placement")));
    let never = Placement::name_of(TaskId::new(), 1);
    assert_eq!(
        world.identify(&format!("{never}/first")).await.0,
        StatusCode::CONFLICT,
        "it was never wanted"
    );
    assert_eq!(world.identify("task-x-1/first").await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.identify("nonsense").await.0, StatusCode::FORBIDDEN);
    world.finish(task, 1).await;
    world.reaches(&[(1, "gone")]).await;
    assert_eq!(world.identify(&format!("{name}/first")).await.0, StatusCode::CONFLICT, "it is over");
    world.halt().await;
}

#[tokio::test]
async fn what_becomes_of_placements_on_other_machines_is_told() {
    let (fake, mut world, task, name) = remote().await;
    let set = |phase: Phase| {
        fake.0.lock().unwrap().agents.insert(name.clone(), phase);
        fake.1.notify_one();
    };
    set(Phase::Waits { why: Some("no machine".to_owned()) });
    world
        .hears("it waits", |report| {
            let waits = PlacementNews::Waits { why: "no machine".to_owned() };
            *report == PlacementReport { task_id: task, epoch: 1, news: waits }
        })
        .await;
    set(Phase::Ended);
    world.hears("it ended", |report| report.task_id == task && report.news == PlacementNews::Ended).await;
    assert_eq!(fake.0.lock().unwrap().starts, 1, "nobody starts it again where it was");
    world.halt().await;
}

#[tokio::test]
async fn while_the_cluster_is_away_tasks_wait_and_say_so() {
    let (fake, mut world, placed, _) = remote().await;
    fake.0.lock().unwrap().broken = true;
    let new = TaskId::new();
    world.queue(new, 1).await;
    let waits = |task: TaskId, what: &'static str| {
        move |report: &PlacementReport| {
            report.task_id == task
                && matches!(&report.news, PlacementNews::Waits { why } if why.contains(what))
        }
    };
    world.hears("the placed one waits", waits(placed, "compute does not answer: the cluster is away")).await;
    world.hears("the new one waits", waits(new, "cannot be started")).await;
    fake.0.lock().unwrap().broken = false;
    world.reaches(&[(1, "started"), (1, "started")]).await;
    world.halt().await;
}

#[tokio::test]
async fn real_processes_start_and_end() {
    let data = tempfile::tempdir().unwrap();
    let program = data.path().join("agent.sh");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let local = Local::open(LocalConfig {
        data: data.path().to_owned(),
        agent: program,
        endpoint: "unix:/nowhere".to_owned(),
        isolation: "none".to_owned(),
        job_user: None,
        hide: Vec::new(),
        cgroups: true,
        ssh: None,
    });
    let mut world = World::new(Arc::new(local.unwrap())).await;
    let task = TaskId::new();
    world.queue(task, 1).await;
    world.reaches(&[(1, "started")]).await;
    let name = Placement::name_of(task, 1);
    assert_eq!(world.alive(&name).await, Some(true));
    world.halt().await;
    assert_eq!(world.alive(&name).await, Some(true), "agents run on without the scheduler");
    world.boot().await;
    world.finish(task, 1).await;
    world.reaches(&[(1, "gone")]).await;
    assert_eq!(world.alive(&name).await, None);
    world.halt().await;
}

#[tokio::test]
async fn placements_of_a_job_that_is_past_its_retention_go_once_their_agents_have_gone() {
    let mut world = World::new(Arc::new(Fake::default())).await;
    let (over, runs) = (TaskId::new(), TaskId::new());
    world.queue(over, 1).await;
    world.reaches(&[(1, "started")]).await;
    world.finish(over, 1).await;
    world.reaches(&[(1, "gone")]).await;
    world.queue(runs, 1).await;
    let job = async |task: TaskId| {
        let id: Option<uuid::Uuid> =
            sqlx::query_scalar("SELECT job_id FROM scheduler.placements WHERE task_id = $1")
                .bind(task.uuid())
                .fetch_optional(&world.pool)
                .await
                .unwrap();
        id.map(JobId)
    };
    testkit::until("the second is placed", LIMIT, || async { job(runs).await.is_some() }).await;
    let conductor = Store::open(world.pool.clone(), "conductor", &NO_MIGRATIONS).await.unwrap();
    world.bus.register_source(&conductor);
    for task in [over, runs] {
        let body = WorkflowExpired {
            workflow_id: WorkflowId::new(),
            pipeline_id: ids::PipelineId::new(),
            jobs: vec![job(task).await.unwrap()],
            archived: Archived { archive: uuid::Uuid::nil(), events: 1 },
        };
        let mut tx = conductor.begin(&[]).await.unwrap();
        let event = NewEvent::new("workflow", body.workflow_id.uuid(), Actor::service("conductor"), &body);
        tx.append(&[event]).await.unwrap();
        tx.commit().await.unwrap();
    }
    testkit::until("what is gone is forgotten", LIMIT, || async { job(over).await.is_none() }).await;
    // Whose agent is there waits, and is tried again.
    testkit::until("the other is parked", LIMIT, || async {
        let parked: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM scheduler.parked WHERE group_name = 'scheduler.expired'",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        parked == 1
    })
    .await;
    assert!(job(runs).await.is_some());
    world.finish(runs, 1).await;
    testkit::until("it follows", LIMIT, || async { job(runs).await.is_none() }).await;
    world.halt().await;
}
