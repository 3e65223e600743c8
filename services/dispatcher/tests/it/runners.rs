//! Self-hosted runners: their registry, and who gets which task.

use crate::support::{LIMIT, World, code, machine, patient};
use agent_api::{Problem, RunnerClaim, RunnerTask, RunnerUnclaim};
use axum::http::StatusCode;
use contracts::{Actor, RequestError, conductor::Wait, dispatcher::*, domain::Project};
use gantry_dispatcher::Config;
use ids::{ClaimId, JobId, OrgId, UserId};
use sha2::{Digest, Sha256};
use std::time::Duration;

const CLASS: &str = "acme/gpu";

fn person() -> Actor {
    Actor::User { id: UserId::new() }
}

impl World {
    async fn class(&self, org_id: OrgId, name: &str) -> Result<RunnerClass, RequestError> {
        let ask = CreateRunnerClass { org_id, resource_class: name.into(), description: "two cards".into() };
        self.bus.ask(&person(), &ask).await
    }

    async fn runner_token(&self, class: &RunnerClass, token: &str) -> RunnerToken {
        let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
        let ask = CreateRunnerToken { class_id: class.id, nickname: "rack".into(), sha256 };
        self.bus.ask(&person(), &ask).await.unwrap()
    }

    async fn runner_claim(
        &self,
        token: &str,
        free: u32,
    ) -> Result<Option<RunnerTask>, (StatusCode, Problem)> {
        let (name, hostname, version) = ("one".into(), "rack-3".into(), "0.1.0".into());
        let claim = RunnerClaim { name, hostname, version, free, wait_ms: 0 };
        self.post("/api/v3/runner/claim", Some(token), &claim).await
    }

    async fn waiting(&self, job: JobId, parallelism: u32, class: &str) {
        self.announce_class(&self.project.clone(), job, parallelism, machine(), class).await;
        testkit::until("the tasks wait", LIMIT, || async { !self.waits(job).await.is_empty() }).await;
    }

    async fn waits(&self, job: JobId) -> Vec<Wait> {
        self.bus.ask(&person(), &ExplainJob { job_id: job }).await.unwrap_or_default()
    }
}

fn refused(error: RequestError) -> String {
    match error {
        RequestError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn classes_and_tokens_come_and_go() {
    let world = World::new(patient()).await;
    let (ours, theirs) = (world.project.org_id, OrgId::new());
    let class = world.class(ours, CLASS).await.unwrap();
    assert_eq!(refused(world.class(ours, CLASS).await.unwrap_err()), "exists");
    assert_eq!(
        refused(world.class(theirs, "acme/other").await.unwrap_err()),
        "invalid",
        "the namespace is taken"
    );
    for name in ["gpu", "acme/", "/gpu", "acme/g p", "a/b/c"] {
        assert_eq!(refused(world.class(ours, name).await.unwrap_err()), "invalid", "{name}");
    }
    for reference in [CLASS.to_owned(), class.id.to_string()] {
        assert_eq!(world.bus.ask(&person(), &GetRunnerClass { reference }).await.unwrap(), class);
    }
    let listed = |org: OrgId| ListRunnerClasses { org_ids: vec![org] };
    assert_eq!(world.bus.ask(&person(), &listed(theirs)).await.unwrap(), []);

    let token = world.runner_token(&class, "a-token").await;
    let tokens = ListRunnerTokens { class_id: class.id };
    assert_eq!(world.bus.ask(&person(), &tokens).await.unwrap(), std::slice::from_ref(&token));
    let keep = DeleteRunnerClass { id: class.id, force: false };
    assert_eq!(refused(world.bus.ask(&person(), &keep).await.unwrap_err()), "has_tokens");
    assert!(world.runner_claim("a-token", 1).await.unwrap().is_none());
    world.bus.ask(&person(), &DeleteRunnerToken { id: token.id }).await.unwrap();
    assert_eq!(code(world.runner_claim("a-token", 1).await), "unauthorized");
    world.runner_token(&class, "another").await;
    world.bus.ask(&person(), &DeleteRunnerClass { id: class.id, force: true }).await.unwrap();
    assert_eq!(code(world.runner_claim("another", 1).await), "unauthorized");
    assert_eq!(world.bus.ask(&person(), &listed(ours)).await.unwrap(), []);
    world.halt().await;
}

#[tokio::test]
async fn a_task_goes_to_a_runner_of_its_class_and_organisation_alone() {
    // Not even a slot is needed.
    let world = World::new(Config { slots: 1, ..patient() }).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    let elsewhere = world.class(OrgId::new(), "other/gpu").await.unwrap();
    world.runner_token(&class, "ours").await;
    world.runner_token(&elsewhere, "theirs").await;
    let (job, foreign) = (JobId::new(), JobId::new());
    world.waiting(job, 2, CLASS).await;
    // The class is another organisation's: naming it opens nothing.
    world.waiting(foreign, 1, "other/gpu").await;
    assert!(world.runner_claim("theirs", 1).await.unwrap().is_none());
    assert!(world.waits(foreign).await[0].text.contains("no such class"));
    assert!(world.waits(job).await[0].text.contains("no runner has ever connected"));

    assert!(world.runner_claim("ours", 0).await.unwrap().is_none(), "it only says that it lives");
    let said = world.waits(job).await;
    assert!(said[1].text.contains("1 connected, none free; it is number 2 of 2"), "{}", said[1].text);
    let first = world.runner_claim("ours", 2).await.unwrap().unwrap();
    let second = world.runner_claim("ours", 1).await.unwrap().unwrap();
    assert_ne!(first.task_id, second.task_id);
    assert!(world.runner_claim("ours", 1).await.unwrap().is_none());
    let lease = world.claim_as(ClaimId::new(), first.task_id, first.epoch).await.unwrap();
    assert_eq!((lease.spec.job_id, lease.spec.resources.class.as_str()), (job, CLASS));
    let counted = world.bus.ask(&person(), &CountRunnerTasks { class_id: class.id }).await.unwrap();
    assert_eq!(counted, RunnerTasks { unclaimed: 0, running: 2 });
    let seen = world.bus.ask(&person(), &ListRunners { class_ids: vec![class.id] }).await.unwrap();
    assert_eq!((seen.len(), &*seen[0].hostname, seen[0].last_used.is_some()), (1, "rack-3", true));

    // Its tasks take no slot from others.
    world.announce(JobId::new(), 1, machine()).await;
    assert_eq!(world.queued(3).await.last().unwrap().resource_class, "medium");
    world.halt().await;
}

#[tokio::test]
async fn a_task_that_a_runner_took_and_lost_waits_for_the_next() {
    let world = World::new(Config { claim_timeout: Duration::from_millis(50), ..patient() }).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    world.runner_token(&class, "ours").await;
    let job = JobId::new();
    world.waiting(job, 1, CLASS).await;
    let lost = world.runner_claim("ours", 1).await.unwrap().unwrap();
    testkit::until("it waits again", LIMIT, || async {
        world.waits(job).await.first().is_some_and(|wait| wait.text.contains("waits for a runner"))
    })
    .await;
    assert_eq!(code(world.claim_as(ClaimId::new(), lost.task_id, lost.epoch).await), "stale_lease");
    let again = world.runner_claim("ours", 1).await.unwrap().unwrap();
    assert_eq!((again.task_id, again.epoch), (lost.task_id, lost.epoch + 1));
    world.halt().await;
}

#[tokio::test]
async fn a_task_that_is_given_back_goes_to_the_next_until_that_was_too_often() {
    let world = World::new(Config { max_requeues: 2, ..patient() }).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    world.runner_token(&class, "ours").await;
    let job = JobId::new();
    world.waiting(job, 1, CLASS).await;
    let give_back = async |task: &RunnerTask, token: &str| {
        let ask = RunnerUnclaim { task_id: task.task_id, task_token: token.into() };
        let answer = world.post::<serde_json::Value>("/api/v3/runner/unclaim", None, &ask).await;
        answer.map(drop).map_err(|(status, problem)| (status.as_u16(), problem.code))
    };
    let refusal = |status: u16, code: &str| Err((status, code.to_owned()));
    for round in 0..=2 {
        let taken = std::sync::Mutex::new(None);
        testkit::until("the task is there to be taken", LIMIT, async || {
            let task = world.runner_claim("ours", 1).await.unwrap();
            task.is_some_and(|task| taken.lock().unwrap().replace(task).is_none())
        })
        .await;
        let task: RunnerTask = taken.into_inner().unwrap().expect("a task");
        assert_eq!(give_back(&task, "made up").await, refusal(400, "invalid"));
        let last = if round < 2 { Ok(()) } else { refusal(409, "exhausted") };
        assert_eq!(give_back(&task, &task.token).await, last);
        testkit::until("it is not the runner's any more", LIMIT, async || {
            give_back(&task, &task.token).await == refusal(409, "stale_lease")
        })
        .await;
    }
    testkit::until("the job is over", LIMIT, async || world.waits(job).await.is_empty()).await;
    assert!(world.runner_claim("ours", 1).await.unwrap().is_none());
    world.halt().await;
}

#[tokio::test]
async fn a_task_whose_agent_came_is_not_given_back() {
    let world = World::new(patient()).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    world.runner_token(&class, "ours").await;
    world.waiting(JobId::new(), 1, CLASS).await;
    let task = world.runner_claim("ours", 1).await.unwrap().unwrap();
    world.claim_as(ClaimId::new(), task.task_id, task.epoch).await.unwrap();
    let ask = RunnerUnclaim { task_id: task.task_id, task_token: task.token };
    let answer = world.post::<serde_json::Value>("/api/v3/runner/unclaim", None, &ask).await;
    assert_eq!(code(answer), "stale_lease");
    world.halt().await;
}

#[tokio::test]
async fn a_runner_of_a_far_version_gets_nothing_and_is_told_why() {
    let world = World::new(patient()).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    world.runner_token(&class, "ours").await;
    let claim = |version: &str| RunnerClaim {
        name: "one".into(),
        hostname: String::new(),
        version: version.into(),
        free: 1,
        wait_ms: 0,
    };
    let path = "/api/v3/runner/claim";
    let (status, problem) = world.post::<()>(path, Some("ours"), &claim("0.9.0")).await.unwrap_err();
    assert_eq!((status, problem.code.as_str()), (StatusCode::UPGRADE_REQUIRED, "version_skew"));
    assert!(problem.message.contains("update the server"), "{}", problem.message);
    let stranger = world.post::<()>(path, Some("nobody's"), &claim("0.9.0")).await.unwrap_err();
    assert_eq!(stranger.0, StatusCode::UNAUTHORIZED, "versions are told to who has a token");
    assert!(world.post::<Option<RunnerTask>>(path, Some("ours"), &claim("0.2.0")).await.unwrap().is_none());
    world.halt().await;
}

#[tokio::test]
async fn a_poll_hears_of_a_task_at_once() {
    let world = World::new(patient()).await;
    let class = world.class(world.project.org_id, CLASS).await.unwrap();
    world.runner_token(&class, "ours").await;
    let project: Project = world.project.clone();
    let claim = RunnerClaim {
        name: "one".into(),
        hostname: String::new(),
        version: "0.1.0".into(),
        free: 1,
        wait_ms: 20_000,
    };
    let (taken, ()) = tokio::join!(
        world.post::<RunnerTask>("/api/v3/runner/claim", Some("ours"), &claim),
        world.announce_class(&project, JobId::new(), 1, machine(), CLASS),
    );
    taken.unwrap();
    world.halt().await;
}
