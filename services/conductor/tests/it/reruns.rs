//! Reruns: by people and by themselves.

use crate::support::{World, build, code, workflow};
use contracts::{
    conductor::{CancelJob, JobReady, RerunWorkflow, WorkflowCreated},
    domain::UserKey,
};
use ids::{JobId, MessageId, UserId, WorkflowId};
use model::{
    plan::JobKind,
    ssh::Access,
    status::{JobStatus, WorkflowStatus},
};

fn rerun(id: WorkflowId, from_failed: bool) -> RerunWorkflow {
    RerunWorkflow { id, from_failed, jobs: None, sparse_tree: false, failed_tests: false, ssh: false }
}

fn jobs() -> Vec<model::plan::JobPlan> {
    vec![build("a", &[]), build("b", &["a"]), build("c", &["b"]), build("on-failure", &["a:failed"])]
}

#[tokio::test]
async fn r14_from_failed_keeps_what_succeeded() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
    let old = created.workflow_id;
    let ask = rerun(old, true);
    assert_eq!(code(world.ask(&ask).await), "not_ended");
    assert_eq!(world.run_to_end(old, &[("b", JobStatus::Failed)]).await, WorkflowStatus::Failed);

    let other = contracts::Actor::User { id: UserId::new() };
    let new = world.bus.ask(&other, &ask).await.unwrap().id;
    let again = world.events::<WorkflowCreated>().await.into_iter().find(|w| w.workflow_id == new).unwrap();
    assert_eq!(again.rerun_of, Some(old));
    let carried: Vec<&str> =
        again.jobs.iter().filter(|j| j.status == JobStatus::Success).map(|j| j.name.as_str()).collect();
    assert_eq!(carried, ["a"]);
    assert_eq!(world.run_to_end(new, &[]).await, WorkflowStatus::Success);
    let ready: Vec<JobReady> = world.events::<JobReady>().await;
    let ready: Vec<_> = ready.iter().filter(|ready| ready.workflow_id == new).collect();
    assert_eq!(ready.iter().map(|ready| ready.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert!(ready.iter().all(|ready| ready.workspace_id == old && ready.acting_user == other.user()));
    assert_eq!(world.jobs(new).await["on-failure"], "not_run");
    assert_eq!(world.jobs(old).await["b"], "failed", "the old instance stays as it is");

    assert_eq!(code(world.ask(&rerun(new, true)).await), "nothing_failed");
    assert_eq!(code(world.ask(&rerun(WorkflowId::new(), true)).await), "not_found");
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn from_start_runs_everything_once_per_command() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
    world.run_to_end(created.workflow_id, &[]).await;
    let (command, ask) = (MessageId::new(), rerun(created.workflow_id, false));
    let new = world.ask_again(command, &ask).await.unwrap().id;
    assert_eq!(world.ask_again(command, &ask).await.unwrap().id, new, "a repeat is answered like the first");
    assert_eq!(world.run_to_end(new, &[]).await, WorkflowStatus::Success);
    assert_eq!(world.events::<WorkflowCreated>().await.len(), 2);
    let numbers: Vec<i64> = world.events::<JobReady>().await.iter().map(|ready| ready.number).collect();
    assert_eq!(numbers, (1..=6).collect::<Vec<_>>());
    world.others.forbidden.lock().unwrap().push((world.user, "rerun".into()));
    assert_eq!(code(world.ask(&ask).await), "forbidden");
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_failed_workflow_reruns_itself_as_often_as_it_may() {
    let mut world = World::new().await;
    let mut plan = workflow("main", jobs());
    plan.max_auto_reruns = 2;
    world.push(vec![plan]).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let all = world.events::<WorkflowCreated>().await;
        let next = all.iter().find(|w| !seen.contains(&w.workflow_id)).unwrap().workflow_id;
        seen.push(next);
        assert_eq!(world.run_to_end(next, &[("b", JobStatus::Failed)]).await, WorkflowStatus::Failed);
    }
    assert_eq!(world.events::<WorkflowCreated>().await.len(), 3, "no more than two");
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn r16_a_job_that_was_lost_runs_again_if_it_may() {
    let mut world = World::new().await;
    let may = |name: &str, requires: &[&str], reruns: u32| {
        let mut job = build(name, requires);
        if let JobKind::Build { definition } = &mut job.kind {
            definition.auto_rerun_on_infra_fail = reruns;
        }
        job
    };
    let plan = |name: &str| workflow(name, vec![may("a", &[], 2), build("b", &["a"]), build("c", &[])]);
    let instances = async |world: &World, name: &str| {
        let all = world.events::<WorkflowCreated>().await;
        all.into_iter().filter(|w| w.name == name).map(|w| w.workflow_id).collect::<Vec<_>>()
    };
    world.push(vec![plan("lost"), plan("other"), plan("failed"), plan("asked")]).await;

    // As often as it says, and no more; what succeeded is kept.
    for turn in 0..3 {
        let ids = instances(&world, "lost").await;
        assert_eq!(ids.len(), turn + 1);
        let ends = [("a", JobStatus::InfrastructureFail)];
        assert_eq!(world.run_to_end(ids[turn], &ends).await, WorkflowStatus::Failed);
        let jobs = world.jobs(ids[turn]).await;
        assert_eq!((jobs["b"].as_str(), jobs["c"].as_str()), ("not_run", "success"));
    }
    assert_eq!(instances(&world, "lost").await.len(), 3);
    let ready: Vec<JobReady> = world.events::<JobReady>().await;
    let ran = |name| ready.iter().filter(|r| r.workflow_name == "lost" && r.name == name).count();
    assert_eq!((ran("a"), ran("b"), ran("c")), (3, 0, 1));

    // Beside a job that did not say so, or one that failed by itself, nothing runs twice.
    for (name, ends) in [
        ("other", [("a", JobStatus::InfrastructureFail), ("c", JobStatus::InfrastructureFail)]),
        ("failed", [("a", JobStatus::Failed), ("c", JobStatus::Success)]),
    ] {
        let ids = instances(&world, name).await;
        assert_eq!(world.run_to_end(ids[0], &ends).await, WorkflowStatus::Failed);
        assert_eq!(instances(&world, name).await.len(), 1, "{name}");
    }

    // A rerun that somebody asked for may be lost too.
    let first = instances(&world, "asked").await[0];
    world.run_to_end(first, &[]).await;
    let asked = world.ask(&rerun(first, false)).await.unwrap().id;
    world.run_to_end(asked, &[("a", JobStatus::InfrastructureFail)]).await;
    let again = instances(&world, "asked").await[2];
    assert_eq!(world.run_to_end(again, &[]).await, WorkflowStatus::Success);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn chosen_jobs_run_alone_or_with_what_waits_for_them() {
    let mut world = World::new().await;
    let jobs = vec![
        build("a", &[]),
        build("b", &["a"]),
        build("c", &["b"]),
        build("d", &["a"]),
        build("on-failure", &["b:failed"]),
    ];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let old = created.workflow_id;
    world.run_to_end(old, &[]).await;
    let b = crate::support::id_of(&created, "b");
    let ask = |jobs: Vec<JobId>, sparse_tree| RerunWorkflow {
        id: old,
        from_failed: false,
        jobs: Some(jobs),
        sparse_tree,
        failed_tests: false,
        ssh: false,
    };
    assert_eq!(code(world.ask(&ask(vec![JobId::new()], false)).await), "not_found");
    assert_eq!(code(world.ask(&RerunWorkflow { from_failed: true, ..ask(vec![b], false) }).await), "invalid");
    assert_eq!(
        code(world.ask(&RerunWorkflow { failed_tests: true, ..ask(vec![b], false) }).await),
        "invalid"
    );
    assert_eq!(code(world.ask(&RerunWorkflow { jobs: None, ..ask(vec![], true) }).await), "invalid");

    for (sparse_tree, runs) in [(false, vec!["b"]), (true, vec!["b", "c"])] {
        let new = world.ask(&ask(vec![b], sparse_tree)).await.unwrap().id;
        assert_eq!(world.run_to_end(new, &[]).await, WorkflowStatus::Success);
        let ready: Vec<JobReady> = world.events::<JobReady>().await;
        let ready: Vec<_> = ready.iter().filter(|ready| ready.workflow_id == new).collect();
        assert_eq!(ready.iter().map(|ready| ready.name.as_str()).collect::<Vec<_>>(), runs);
        assert_eq!(ready[0].upstream, [crate::support::id_of(&created, "a")], "the job that really ran");
        let jobs = world.jobs(new).await;
        assert_eq!(jobs["a"], "success");
        assert_eq!(
            jobs.contains_key("on-failure"),
            sparse_tree,
            "what did not run and was not asked for is left out"
        );
    }
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn failed_tests_are_those_of_the_instance_before() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
    let (mut old, mut failed) = (created.workflow_id, crate::support::id_of(&created, "b"));
    world.run_to_end(old, &[("b", JobStatus::Failed)]).await;
    for ends in [JobStatus::Failed, JobStatus::Success] {
        let new = world.ask(&RerunWorkflow { failed_tests: true, ..rerun(old, false) }).await.unwrap().id;
        world.run_to_end(new, &[("b", ends)]).await;
        let ready: Vec<JobReady> = world.events::<JobReady>().await;
        let ready: Vec<_> = ready.iter().filter(|ready| ready.workflow_id == new).collect();
        let tests: Vec<_> = ready.iter().map(|ready| (ready.name.as_str(), ready.failed_tests_of)).collect();
        // `on-failure` had succeeded; what had not run at all runs all of its tests.
        let expected = match ends {
            JobStatus::Failed => vec![("b", Some(failed))],
            _ => vec![("b", Some(failed)), ("c", None)],
        };
        assert_eq!(tests, expected);
        (old, failed) = (new, ready[0].job_id);
    }
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_rerun_with_ssh_carries_the_keys_of_who_asks() {
    let mut world = World::new().await;
    let key = |line: &str| UserKey {
        public_key: line.into(),
        sha256: format!("SHA256:{line}"),
        label: line.into(),
        created_at: chrono::Utc::now(),
    };
    *world.others.ssh_keys.lock().unwrap() = vec![key("ssh-ed25519 one")];
    let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
    let old = created.workflow_id;
    world.run_to_end(old, &[("b", JobStatus::Failed)]).await;
    let b = crate::support::id_of(&created, "b");
    let ask = RerunWorkflow { jobs: Some(vec![b]), ssh: true, ..rerun(old, false) };
    assert_eq!(code(world.ask(&RerunWorkflow { jobs: None, ..ask.clone() }).await), "invalid");
    let ready = async |world: &World, id: WorkflowId| {
        let all: Vec<JobReady> = world.events::<JobReady>().await;
        all.into_iter()
            .filter(|ready| ready.workflow_id == id)
            .map(|ready| (ready.name, ready.ssh))
            .collect::<Vec<_>>()
    };
    let access = |keys: &[&str]| {
        Some(Access { login: Some("ada".into()), keys: keys.iter().map(|key| (*key).to_owned()).collect() })
    };
    let with = world.ask(&ask).await.unwrap().id;
    world.until_job(with, "b", "queued").await;
    assert_eq!(ready(&world, with).await, [("b".to_owned(), access(&["ssh-ed25519 one"]))]);
    // It was never asked for at first.
    assert!(ready(&world, old).await.iter().all(|(_, ssh)| ssh.is_none()));

    // A cancel that comes when its steps have ended ends what came after them.
    let again =
        world.events::<JobReady>().await.into_iter().find(|ready| ready.workflow_id == with).unwrap().job_id;
    world.job_started(with, again).await;
    world.ask(&CancelJob { job_id: again }).await.unwrap();
    world.job_settled(with, again, JobStatus::Failed, true).await;
    world.until_job(with, "b", "failed").await;

    // A rerun of that instance has it too, with the keys of then; and with none, nobody enters.
    for keys in [vec!["ssh-ed25519 two"], vec![]] {
        *world.others.ssh_keys.lock().unwrap() = keys.iter().map(|line| key(line)).collect();
        let next = world.ask(&rerun(with, false)).await.unwrap().id;
        world.run_to_end(next, &[]).await;
        let ready = ready(&world, next).await;
        assert!(!ready.is_empty() && ready.iter().all(|(_, ssh)| *ssh == access(&keys)), "{ready:?}");
    }
    // A project whose people do not want it: refused, and what once had it goes on without.
    *world.others.disable_ssh.lock().unwrap() = true;
    assert_eq!(code(world.ask(&ask).await), "ssh_disabled");
    let next = world.ask(&rerun(with, false)).await.unwrap().id;
    world.run_to_end(next, &[]).await;
    assert!(ready(&world, next).await.iter().all(|(_, ssh)| ssh.is_none()));
    let acts: i64 = sqlx::query_scalar("SELECT count(*) FROM conductor.acts WHERE kind = 'job.ssh_rerun'")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(acts, 1);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn where_ssh_is_switched_off_such_a_rerun_is_refused() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
    world.run_to_end(created.workflow_id, &[("b", JobStatus::Failed)]).await;
    world.stop().await;
    world.config.ssh = false;
    world.start().await;
    let b = crate::support::id_of(&created, "b");
    let ask = RerunWorkflow { jobs: Some(vec![b]), ssh: true, ..rerun(created.workflow_id, false) };
    assert_eq!(code(world.ask(&ask).await), "ssh_disabled");
    world.stop().await;
}
