//! The real agent against a suite in this process.

mod clock;
mod contract;
mod docker;
mod ssh;
mod suite;

use agent_api::{JobUser, Source};
use model::plan::{Step, When};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, sync::atomic::Ordering};
use suite::{Suite, eventually, lease, run, step};

#[tokio::test]
async fn steps_run_in_order_and_what_they_write_arrives_whole() {
    let steps = vec![
        run("echo one; echo two >&2; [ -t 1 ] && echo tty"),
        run("echo 'export PASSED=on' >> \"$BASH_ENV\"; pwd; echo $HOME"),
        run(
            "echo \"$PASSED $CIRCLE_JOB $CIRCLE_BUILD_NUM $FROM_JOB $TERM ${CIRCLE_TAG-unset}\"; cat; circleci --version",
        ),
        step(|s| {
            s.command = "import os; print(os.environ['MINE'])".into();
            s.shell = Some("python3".into());
            s.environment = vec![("MINE".into(), "step".into())];
        }),
    ];
    let mut lease = lease(steps);
    lease.spec.definition.environment = vec![("FROM_JOB".into(), "job value".into())];
    let suite = Suite::new(lease);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert_eq!(suite.log(101), "one\ntwo\ntty\n");
    let log = suite.log(102);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], format!("{}/project", lines[1]));
    assert!(
        suite.log(103).starts_with("on build 7 job value xterm unset\ngantry-runner "),
        "{}",
        suite.log(103)
    );
    assert_eq!(suite.log(104), "step\n");
    assert!(suite.log(99).contains("  CIRCLE_JOB=build\n"));
    assert!(suite.log(0).contains("gantry-runner version"));
    assert!([0, 99, 101, 102, 103, 104].into_iter().all(|n| suite.is_sealed(n)));
    // Nothing of the task is left but its folder.
    assert!(!Path::new(lines[1]).exists() && !suite.task_dir().join("work").exists());
    assert!(!suite.task_dir().join("spool").exists() && !suite.task_dir().join("lease.json").exists());
}

#[tokio::test]
async fn a_failure_skips_what_waits_for_success() {
    let on = |when: When, command: &str| {
        step(|s| {
            s.when = when;
            s.command = command.into();
        })
    };
    let suite = Suite::new(lease(vec![
        on(When::OnFail, "echo too early"),
        run("false | true; echo not reached"),
        run("echo skipped"),
        on(When::OnFail, "echo on_fail"),
        on(When::Always, "kill -9 $$"),
        step(|s| {
            s.when = When::Always;
            s.command = "false; exit 3".into();
            s.shell = Some("/bin/sh".into());
        }),
        step(|s| {
            s.when = When::Always;
            s.working_directory = Some("missing".into());
        }),
    ]));
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "failed");
    let failed = |n, code| (n, "failed".to_owned(), Some(code));
    assert_eq!(
        suite.summary()[2..],
        [failed(102, 1), (104, "success".into(), Some(0)), failed(105, 137), failed(106, 3), failed(107, 1)]
    );
    assert_eq!(suite.log(102), "");
}

/// On the machine as in containers; where the machine does not hold them, the job runs and its spin-up says so.
#[tokio::test]
async fn the_resource_class_limits_what_all_steps_use() {
    let mut lease = lease(vec![run("head -c 300m /dev/zero | tail -c 200m | wc -c")]);
    lease.spec.resources =
        agent_api::Resources { class: "tiny".into(), cpu_millis: Some(1500), memory_bytes: Some(64 << 20) };
    let group = format!("gantry/task-{}-{}.bounds", lease.task_id, lease.epoch);
    let suite = Suite::new(lease);
    let mut agent = suite.agent("none", None, vec![]);
    suite.until("the step begins", |seen| seen.steps.contains_key(&101)).await;
    let spin_up = suite.log(0);
    assert!(spin_up.contains("Resource class tiny\nLimits: 1.5 vCPU, 64 MiB of memory\n"), "{spin_up}");
    if spin_up.contains("does not hold limits of memory") {
        eprintln!("left out: {spin_up}");
        agent.kill().await.unwrap();
        return;
    }
    assert_eq!(suite.finished(agent).await, "failed");
    assert_eq!(suite.summary()[2], (101, "failed".into(), Some(137)));
    assert!(suite.log(101).contains("oom_killed: the job needed more than 64 MiB"), "{}", suite.log(101));
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"] {
        assert!(!Path::new(root).join(&group).exists(), "{group} is left in {root}");
    }
}

#[tokio::test]
async fn a_step_that_waits_for_a_store_says_so() {
    let store = Step::StoreArtifacts {
        path: "file".into(),
        destination: None,
        name: "Uploading artifacts".into(),
        when: When::Always,
    };
    let suite = Suite::new(lease(vec![run("echo kept > file"), store]));
    suite.seen.lock().unwrap().store_away = true;
    let agent = suite.agent("none", None, vec![]);
    let says = |seen: &suite::Seen| {
        let log = seen.steps.get(&102).and_then(|step| seen.streams.get(&step.step_id));
        log.is_some_and(|log| String::from_utf8_lossy(log).contains("The store does not answer."))
    };
    suite.until("the step says what it waits for", says).await;
    suite.seen.lock().unwrap().store_away = false;
    assert_eq!(suite.finished(agent).await, "success");
    let log = suite.log(102);
    assert_eq!(log.matches("The store does not answer.").count(), 1, "{log}");
    assert_eq!(log.matches("The store answers again.").count(), 1, "{log}");
    assert_eq!(suite.seen.lock().unwrap().stored, ["kept\n"]);
}

#[tokio::test]
async fn halt_ends_the_job_with_success() {
    let suite = Suite::new(lease(vec![run("circleci-agent step halt; echo to the end"), run("echo no")]));
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert_eq!((suite.log(101).as_str(), suite.summary().len()), ("to the end\n", 3));
}

#[tokio::test]
async fn background_steps_and_leftovers_live_until_the_job_ends() {
    let marker = tempfile::tempdir().unwrap();
    let pids = marker.path().display().to_string();
    let suite = Suite::new(lease(vec![
        step(|s| {
            s.background = true;
            s.command = format!("echo from the background; touch {pids}/up; sleep 1000");
        }),
        run(&format!("until [ -e {pids}/up ]; do sleep 0.01; done; setsid sleep 1001 & echo left")),
        run(&format!("pgrep -f 'sleep 1000' && pgrep -f 'sleep 1001'; touch {pids}/both")),
    ]));
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert_eq!(suite.log(101), "from the background\n");
    assert_eq!(suite.log(102), "left\n");
    assert!(marker.path().join("both").exists());
    assert_eq!(suite.summary()[2], (101, "success".into(), None));
    assert!(!running("sleep 1000") && !running("sleep 1001"));
}

#[tokio::test]
async fn what_a_step_leaves_writing_does_not_hold_it_up() {
    let suite = Suite::new(lease(vec![
        run("while :; do echo on; done & echo left"),
        run("while sleep 0.01; do echo on; done & echo left too"),
        run("echo after them"),
    ]));
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert!(suite.log(101).contains("left\n") && suite.log(102).contains("left too\n"));
    assert_eq!(suite.log(103), "after them\n");
}

#[tokio::test]
async fn without_namespaces_nothing_outlives_the_job_either() {
    if !is_root() {
        return;
    }
    let suite = Suite::new(lease(vec![
        run("setsid sleep 1010 & setsid setsid sleep 1011 & (setsid sleep 1012 & ) ; echo left"),
        run("until pgrep -f 'sleep 1012'; do sleep 0.01; done; echo $HOME"),
    ]));
    let agent = suite.agent_as("none", None, vec![], Some(65534), &[]);
    assert_eq!(suite.finished(agent).await, "success");
    assert!(suite.log(0).contains("isolation: none"));
    assert!(!running("sleep 1010") && !running("sleep 1011") && !running("sleep 1012"));
    assert!(!Path::new(suite.log(102).lines().last().unwrap()).exists());
}

fn running(pattern: &str) -> bool {
    let all = Command::new("ps").args(["axo", "args"]).output().unwrap();
    String::from_utf8_lossy(&all.stdout).lines().any(|line| line == pattern)
}

#[tokio::test]
async fn silence_ends_a_step() {
    let suite = Suite::new(lease(vec![
        step(|s| {
            s.no_output_timeout_secs = 1;
            s.command = "printf begun; sleep 1002".into();
        }),
        run("echo no"),
        step(|s| {
            s.when = When::Always;
            s.command = "echo after".into();
        }),
    ]));
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "failed");
    assert_eq!(suite.log(101), "begun\nToo long with no output (exceeded 1s): context deadline exceeded\n");
    assert_eq!(suite.summary()[2..], [(101, "failed".into(), None), (103, "success".into(), Some(0))]);
}

#[tokio::test]
async fn a_cancel_is_a_request_first() {
    let suite = Suite::new(lease(vec![
        run("trap 'echo asked; exit 1' TERM; echo ready; sleep 1003 & wait"),
        step(|s| {
            s.when = When::Always;
            s.command = "echo no".into();
        }),
    ]));
    let agent = suite.agent("none", None, vec![]);
    suite.until("the step runs", |seen| seen.streams.values().any(|s| s == b"ready\n")).await;
    suite.cancel();
    assert_eq!(suite.finished(agent).await, "canceled");
    assert_eq!(suite.log(101), "ready\nasked\n");
    assert_eq!(suite.summary()[2..], [(101, "canceled".into(), None)]);
    assert!(!running("sleep 1003"));
}

#[tokio::test]
async fn who_does_not_listen_is_killed() {
    let suite = Suite::new(lease(vec![run("trap '' TERM; echo ready; sleep 1004; sleep 1004")]));
    let agent = suite.agent("none", None, vec![]);
    suite.until("the step runs", |seen| seen.streams.values().any(|s| s == b"ready\n")).await;
    suite.cancel();
    assert_eq!(suite.finished(agent).await, "canceled");
    assert!(!running("sleep 1004"));
}

#[tokio::test]
async fn a_job_over_its_limit_is_timed_out() {
    let mut lease = lease(vec![run("sleep 1005")]);
    lease.timing.job_timeout_ms = 1000;
    let suite = Suite::new(lease);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "timedout");
    assert!(!running("sleep 1005"));
}

#[tokio::test]
async fn lost_offsets_are_sent_again() {
    let suite = Suite::new(lease(vec![run("for i in $(seq 20000); do echo line $i; done")]));
    suite.seen.lock().unwrap().gaps = 3;
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    let expected: String = (1..=20000).map(|i| format!("line {i}\n")).collect();
    assert!(suite.log(101) == expected, "{} bytes", suite.log(101).len());
}

#[tokio::test]
async fn a_suite_that_restarts_misses_nothing() {
    let marker = tempfile::tempdir().unwrap();
    let m = marker.path().display().to_string();
    let suite = Suite::new(lease(vec![
        run(&format!("echo before; until [ -e {m}/go ]; do sleep 0.01; done; echo during; touch {m}/went")),
        run(&format!("echo second; touch {m}/second")),
    ]));
    suite.seen.lock().unwrap().refuse_finish = 2;
    let agent = suite.agent("none", None, vec![]);
    suite.until("the step runs", |seen| seen.streams.values().any(|s| s == b"before\n")).await;
    suite.vanish();
    fs::write(marker.path().join("go"), "").unwrap();
    eventually("the job goes on without the suite", || marker.path().join("second").exists()).await;
    suite.serve();
    assert_eq!(suite.finished(agent).await, "success");
    assert_eq!((suite.log(101).as_str(), suite.log(102).as_str()), ("before\nduring\n", "second\n"));
}

#[tokio::test]
async fn a_full_spool_makes_the_program_wait() {
    let mut lease = lease(vec![run("seq 200000; touch ../done; echo end")]);
    lease.timing.spool_bytes = 100_000;
    let suite = Suite::new(lease);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).chain(["end\n".into()]).collect();
    assert!(suite.log(101) == expected);
}

#[tokio::test]
async fn a_stream_ends_at_its_limit_and_the_step_goes_on() {
    let suite = Suite::new(lease(vec![run("seq 200000")]));
    suite.seen.lock().unwrap().stream_limit = Some(1000);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert_eq!(suite.log(101).len(), 1000);
    let seen = suite.seen.lock().unwrap();
    let seal = &seen.sealed[&seen.steps[&101].step_id];
    assert_eq!((seal.total_bytes, seal.produced_bytes), (1000, 1_288_895));
}

#[tokio::test]
async fn a_stale_lease_ends_everything_and_nothing_is_reported() {
    let suite = Suite::new(lease(vec![run("echo ready; trap '' TERM; sleep 1006; sleep 1006")]));
    let mut agent = suite.agent("none", None, vec![]);
    suite.until("the step runs", |seen| seen.streams.values().any(|s| s == b"ready\n")).await;
    suite.seen.lock().unwrap().stale = true;
    agent.wait().await.unwrap();
    assert!(suite.seen.lock().unwrap().finals.is_empty());
    assert!(!running("sleep 1006"));
}

#[tokio::test]
async fn without_renewals_the_task_stops_itself() {
    let mut lease = lease(vec![run("echo ready; sleep 1007")]);
    lease.timing.self_stop_ms = 1500;
    let suite = Suite::new(lease);
    suite.seen.lock().unwrap().no_renewals = true;
    let mut agent = suite.agent("none", None, vec![]);
    agent.wait().await.unwrap();
    assert!(suite.seen.lock().unwrap().finals.is_empty());
    assert!(!running("sleep 1007"));
}

#[tokio::test]
async fn an_agent_that_dies_takes_its_processes_along() {
    let suite = Suite::new(lease(vec![run("echo ready; setsid sleep 1008 & sleep 1009")]));
    let mut agent = suite.agent("none", None, vec![]);
    suite.until("the step runs", |seen| seen.streams.values().any(|s| s == b"ready\n")).await;
    eventually("both run", || running("sleep 1008") && running("sleep 1009")).await;
    agent.start_kill().unwrap();
    agent.wait().await.unwrap();
    eventually("nothing is left", || !running("sleep 1008") && !running("sleep 1009")).await;
    // Another start does not run it again.
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "infrastructure_fail");
    assert_eq!(suite.seen.lock().unwrap().claims.len(), 1);
}

#[tokio::test]
async fn what_a_dead_agent_had_finished_is_delivered_as_it_is() {
    let marker = tempfile::tempdir().unwrap();
    let m = marker.path().display().to_string();
    let whole = step(|step| {
        step.command = format!("until [ -e {m}/go ]; do sleep 0.01; done; echo whole");
        step.background = true;
    });
    let suite = Suite::new(lease(vec![whole, run("sleep 1010")]));
    let mut agent = suite.agent("none", None, vec![]);
    suite.until("both steps are known", |seen| [101, 102].iter().all(|n| seen.steps.contains_key(n))).await;
    suite.vanish();
    fs::write(marker.path().join("go"), "").unwrap();
    let first = suite.seen.lock().unwrap().steps[&101].step_id.to_string();
    let spool = suite.task_dir().join("spool").join(first);
    eventually("the first step has ended", || {
        fs::metadata(&spool).unwrap().permissions().mode() & 0o777 == 0o400
    })
    .await;
    agent.start_kill().unwrap();
    agent.wait().await.unwrap();
    suite.serve();
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "infrastructure_fail");
    assert_eq!(suite.log(101), "whole\n");
    assert!(suite.is_sealed(101));
}

#[tokio::test]
async fn secrets_reach_the_steps_and_not_the_log() {
    let secrets =
        vec![("PASSWORD".to_owned(), "correct horse".to_owned()), ("SHORT".to_owned(), "abc".to_owned())];
    let suite = Suite::with_secrets(
        lease(vec![run(
            "[ \"$PASSWORD\" = 'correct horse' ]; for c in correct ' horse' x; do printf \"$c\"; sleep 0.1; done; echo \" $SHORT\"; printf \"$PASSWORD\" | base64",
        )]),
        secrets,
    );
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert!(suite.log(101).starts_with("**REDACTED**x abc\n**REDACTED**"), "{}", suite.log(101));
    assert!(suite.log(99).contains("  PASSWORD=**REDACTED**\n"));
}

#[tokio::test]
async fn a_job_says_that_it_waits_for_its_secrets() {
    let secrets = vec![("PASSWORD".to_owned(), "correct horse".to_owned())];
    let suite = Suite::with_secrets(lease(vec![run("test \"$PASSWORD\"")]), secrets);
    suite.withheld.store(true, Ordering::SeqCst);
    let agent = suite.agent("none", None, vec![]);
    suite
        .until("the job says that it waits", |seen| {
            let said = seen.steps.get(&0).and_then(|step| seen.streams.get(&step.step_id));
            said.is_some_and(|said| String::from_utf8_lossy(said).contains("Waiting for variables and keys"))
        })
        .await;
    suite.withheld.store(false, Ordering::SeqCst);
    assert_eq!(suite.finished(agent).await, "success");
    assert!(suite.log(0).contains("They are here."), "{}", suite.log(0));
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn isolated() -> Vec<Step> {
    vec![
        run("id -u; id -un; echo $HOME; ls -ld $HOME | cut -c1-10; touch file; ps ax | wc -l"),
        run(
            "ls \"$HIDDEN\" 2>/dev/null | grep secret && echo seen; (umount \"$HIDDEN\") 2>/dev/null && echo uncovered; (kill -9 1) 2>/dev/null || true; echo done",
        ),
    ]
}

#[tokio::test]
async fn another_user_sees_nothing_of_the_server() {
    if !is_root() {
        return;
    }
    let mut lease = lease(isolated());
    let hidden = tempfile::tempdir().unwrap();
    fs::write(hidden.path().join("secret"), "").unwrap();
    lease.spec.definition.environment = vec![("HIDDEN".into(), hidden.path().display().to_string())];
    let suite = Suite::new(lease);
    let user = JobUser { uid: 65534, gid: 65534 };
    let agent = suite.agent("user", Some(user), vec![hidden.path().display().to_string()]);
    assert_eq!(suite.finished(agent).await, "success", "{} {}", suite.log(101), suite.log(102));
    let log = suite.log(101);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("65534", "nobody", "drwx------"), "{log}");
    assert_eq!(suite.log(102), "done\n");
}

#[tokio::test]
async fn namespaces_without_root_hide_the_server() {
    if !is_root() {
        return;
    }
    let mut lease = lease(isolated());
    let hidden = tempfile::tempdir().unwrap();
    fs::write(hidden.path().join("secret"), "").unwrap();
    std::os::unix::fs::chown(hidden.path(), Some(65534), Some(65534)).unwrap();
    lease.spec.definition.environment = vec![("HIDDEN".into(), hidden.path().display().to_string())];
    let suite = Suite::new(lease);
    let agent =
        suite.agent_as("namespace", None, vec![hidden.path().display().to_string()], Some(65534), &[]);
    assert_eq!(suite.finished(agent).await, "success", "{} {}", suite.log(101), suite.log(102));
    assert!(suite.log(101).starts_with("65534\nnobody\n"), "{}", suite.log(101));
    assert_eq!(suite.log(102), "done\n");
}

#[tokio::test]
async fn checkout_makes_the_branch_at_the_revision() {
    let origin = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| {
        let out = Command::new("git").arg("-C").arg(origin.path()).args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    git(&["init", "-q", "-b", "main"]);
    fs::write(origin.path().join("file"), "first\n").unwrap();
    git(&["add", "."]);
    let commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Subject line"];
    git(&commit);
    let revision = git(&["rev-parse", "HEAD"]);
    fs::write(origin.path().join("file"), "second\n").unwrap();
    git(&["add", "."]);
    git(&commit);
    let checkout =
        || Step::Checkout { path: None, method: Default::default(), name: None, when: Default::default() };
    let mut lease = lease(vec![
        checkout(),
        run(
            "cat file; git rev-parse HEAD; git branch --show-current; git config --list | grep -c -i extraheader || true",
        ),
        checkout(),
        Step::Checkout {
            path: Some("../full".into()),
            method: Default::default(),
            name: None,
            when: Default::default(),
        },
        run("mkdir ../other; touch ../other/x"),
        Step::Checkout {
            path: Some("../other".into()),
            method: Default::default(),
            name: None,
            when: Default::default(),
        },
    ]);
    lease.spec.revision = revision.clone();
    let suite = Suite::new(lease);
    let url = format!("file://{}", origin.path().display());
    *suite.source.lock().unwrap() = Some(Source { url, username: "x".into(), password: "read-token".into() });
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "failed");
    assert!(
        suite.log(101).contains("HEAD is now at ") && suite.log(101).contains("Subject line"),
        "{}",
        suite.log(101)
    );
    assert_eq!(suite.log(102), format!("first\n{revision}\nmain\n0\n"));
    assert!(suite.log(103).contains("Fetching into existing repository"), "{}", suite.log(103));
    let refusal = "you are trying to checkout to is not empty and not a git repository";
    assert!(suite.log(106).contains(refusal), "{}", suite.log(106));
    assert_eq!(
        suite.summary()[4..],
        [
            (103, "success".into(), Some(0)),
            (104, "success".into(), Some(0)),
            (105, "success".into(), Some(0)),
            (106, "failed".into(), Some(1)),
        ]
    );
}
