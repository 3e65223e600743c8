//! Containers: the contract of environments, and what keeps them apart.

use crate::suite::{Suite, lease, run, step};
use cgroups::{Bounds, Limits, Unheld};
use executors::{Environment, Io};
use executors_docker::{Config, Docker, Engine, Log, Order, Pull, Service};
use model::plan::{Container, Executor, RegistryAuth};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::io::AsyncReadExt;

static COUNT: AtomicU32 = AtomicU32::new(0);

pub fn config(engine: &testkit::docker::Engine) -> Config {
    Config { socket: engine.socket.display().to_string(), pull: Pull::Never, ..Config::default() }
}

fn container(image: &str) -> Container {
    Container { image: image.into(), ..Container::default() }
}

fn order(containers: Vec<Container>) -> Order {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Order {
        placement: format!("task-{}-{number}", std::process::id()),
        task: "a task".into(),
        containers,
        limits: Limits { cpu_millis: Some(1000), memory_bytes: Some(64 << 20), processes: None },
        program: PathBuf::from(env!("CARGO_BIN_EXE_gantry-runner")),
    }
}

struct Started {
    docker: Docker,
    services: Vec<Service>,
    log: String,
    placement: String,
}

async fn start(engine: &testkit::docker::Engine, order: Order) -> Result<Started, executors_docker::Error> {
    start_on(config(engine), order).await
}

async fn start_on(config: Config, order: Order) -> Result<Started, executors_docker::Error> {
    let engine = Engine::connect(config).await.expect("the engine answers");
    let (log, mut texts) = Log::new();
    let started = executors_docker::start(&engine, &order, &log).await;
    let mut said = String::new();
    while let Ok(text) = texts.try_recv() {
        said.push_str(&text);
    }
    match started {
        Ok((docker, services)) => Ok(Started { docker, services, log: said, placement: order.placement }),
        Err(error) => {
            executors_docker::sweep(&engine, &order.placement).await.expect("sweep");
            Err(error)
        }
    }
}

async fn sh(environment: &dyn Environment, script: &str) -> (String, i32) {
    let command = executors::Command {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: environment.facts().environment.clone().into_iter().collect(),
        dir: environment.facts().home.clone(),
        make_dir: true,
        io: Io::Terminal,
    };
    let mut process = environment.spawn(command).await.expect("spawn");
    let mut text = String::new();
    process.output.read_to_string(&mut text).await.expect("read");
    (text, process.exit.await.expect("an exit code"))
}

fn left(engine: &testkit::docker::Engine, placement: &str) -> String {
    engine.client(&["ps", "-aq", "--filter", &format!("label=gantry.placement={placement}")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_hold_the_contract() {
    let Some(engine) = testkit::docker::engine() else { return };
    for user in [None, Some("circleci".to_owned())] {
        executors::contract::suite(&|| {
            let container = Container { user: user.clone(), ..container(testkit::docker::IMAGE) };
            Box::pin(async move {
                let started = start(engine, order(vec![container])).await.expect("containers");
                Arc::new(started.docker) as Arc<dyn Environment>
            })
        })
        .await;
    }
    // Other tests have containers of their own meanwhile.
    let gone = async || engine.client(&["ps", "-aq", "--filter", "label=gantry.placement"]).is_empty();
    testkit::until("no containers are left", Duration::from_secs(120), gone).await;
    let volumes = engine.client(&["volume", "ls", "-q"]);
    assert_eq!(volumes.lines().count(), 1, "only the programs' volume is left: {volumes}");
}

/// What security §8 asks for and the engine can hold, each seen from inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_kept_apart() {
    let Some(engine) = testkit::docker::engine() else { return };
    let one = start(engine, order(vec![container(testkit::docker::IMAGE)])).await.expect("containers");
    let two = start(engine, order(vec![container(testkit::docker::IMAGE)])).await.expect("containers");
    let probe = async |script: &str| sh(&one.docker, script).await;

    let (text, _) = probe("ls /var/run/docker.sock /run/docker.sock /run/containerd 2>&1").await;
    assert_eq!(text.matches("No such file").count(), 3, "no socket of an engine: {text}");
    let (text, _) = probe("grep CapBnd /proc/self/status").await;
    let capabilities = u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap();
    for (name, number) in [
        ("SYS_ADMIN", 21),
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("MKNOD", 27),
        ("SYS_PTRACE", 19),
        ("SYS_MODULE", 16),
    ] {
        assert_eq!(capabilities >> number & 1, 0, "{name} is held: {text}");
    }
    let (text, code) = probe("mount -t tmpfs none /mnt 2>&1; mknod /tmp/disk b 8 0 2>&1").await;
    assert_ne!(code, 0, "neither mounts nor devices: {text}");
    let (text, _) = probe("grep Seccomp: /proc/self/status").await;
    assert_eq!(text.split_whitespace().last(), Some("2"), "a filter of system calls: {text}");
    assert_eq!(probe("echo 1 > /proc/sys/kernel/panic").await.1, 1, "/proc/sys is read-only");
    assert_eq!(probe("mkdir /sys/x").await.1, 1, "/sys is read-only");
    assert_eq!(probe("head -c 1 /proc/kcore 2>&1 | grep -c ^[^h]").await.0, "0\n", "kcore is masked");
    let (text, _) = probe("ls /dev").await;
    for device in text.split_whitespace() {
        let known = [
            "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
            "stdin", "stdout", "tty", "urandom", "zero",
        ];
        assert!(known.contains(&device), "/dev/{device} is there");
    }
    let (text, _) = probe("ps -o pid,args").await;
    assert!(text.lines().count() <= 4, "only the container's own processes: {text}");
    let (text, code) = probe("echo x > /opt/gantry/bin/gantry-runner").await;
    assert_ne!(code, 0, "the agent's program is read-only: {text}");
    assert_eq!(probe("kill -9 1; sleep 0.1; echo alive").await, ("alive\n".into(), 0));
    assert_eq!(
        probe("tr '\\0' '\\n' </proc/1/environ").await.1,
        1,
        "the first process is closed to the others"
    );

    // Another task's container: its address is known and it does not answer.
    let (address, _) = sh(&two.docker, "hostname -i").await;
    let listening = executors::Command {
        argv: ["nc", "-l", "-p", "7000", "-e", "echo", "reached"].map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        dir: "/".into(),
        ..executors::Command::default()
    };
    let _server = two.docker.spawn(listening).await.expect("spawn");
    let (text, _) = sh(&two.docker, "until nc localhost 7000; do sleep 0.05; done").await;
    assert!(text.contains("reached"), "its own task reaches it: {text}");
    let again = executors::Command {
        argv: ["nc", "-l", "-p", "7001", "-e", "echo", "reached"].map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        dir: "/".into(),
        ..executors::Command::default()
    };
    let _server = two.docker.spawn(again).await.expect("spawn");
    let (text, _) = probe(&format!("nc -w 1 {} 7001 </dev/null 2>&1", address.trim())).await;
    assert!(!text.contains("reached"), "tasks reach each other: {text}");

    for started in [one, two] {
        started.docker.end().await;
        assert_eq!(left(engine, &started.placement), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let Some(engine) = testkit::docker::engine() else { return };
    let mut config = config(engine);
    config.pids = 40;
    let started = start_on(config, order(vec![container(testkit::docker::IMAGE)])).await.expect("containers");
    assert!(started.log.contains("Limits: 1 vCPU, 64 MiB of memory\n"), "{}", started.log);
    let docker = &started.docker;
    let (text, code) = sh(docker, "tail -c 200m /dev/zero | wc -c").await;
    assert!(
        text.contains("Killed") || code != 0 || text.trim() != "209715200",
        "200 MiB fit into 64: {text}"
    );
    assert!(docker.explain(137).await.is_some_and(|why| why.starts_with("oom_killed")), "{text}");
    let (text, _) = sh(docker, "i=0; while [ $i -lt 80 ]; do sleep 5 & i=$((i+1)); done 2>&1; echo").await;
    assert!(text.contains("fork"), "80 processes where 40 may be: {text}");
    let quota = engine.client(&[
        "inspect",
        "-f",
        "{{.HostConfig.NanoCpus}} {{.HostConfig.MemorySwap}}",
        left(engine, &started.placement).trim(),
    ]);
    assert_eq!(quota.trim(), "1000000000 67108864");
    docker.end().await;
}

/// Whether this machine holds limits of several containers together.
fn holds_together() -> bool {
    let all = Limits { cpu_millis: Some(1000), memory_bytes: Some(64 << 20), processes: Some(40) };
    let (bounds, unheld) = Bounds::make(&format!("probe-{}", std::process::id()), &all);
    bounds.remove();
    Unheld::warning(&unheld).inspect(|warning| eprintln!("{warning}")).is_none()
}

/// Each is within its own limits (execution §22: the class is shared by all containers of the job).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_job_share_its_limits() {
    let Some(engine) = testkit::docker::engine() else { return };
    let fill =
        "nc -l -p 7002 </dev/null >/dev/null; head -c 40m /dev/zero >/dev/shm/x; echo full; sleep 1000";
    let service = Container {
        command: Some(["/bin/sh", "-c", fill].map(str::to_owned).to_vec()),
        ..container(testkit::docker::IMAGE)
    };
    let containers = vec![container(testkit::docker::IMAGE), service];
    let mut started = start(engine, order(containers)).await.expect("containers");
    let together = holds_together();
    let said =
        if together { "for all containers together" } else { "for each container and not for all together" };
    assert!(started.log.contains(&format!("Limits: 1 vCPU, 64 MiB of memory, {said}\n")), "{}", started.log);
    let groups = || {
        let all = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"]
            .map(|root| format!("{root}/gantry/{}.bounds", started.placement));
        all.iter().filter(|group| std::path::Path::new(group).exists()).count()
    };
    assert_eq!(groups(), usize::from(together));
    if together {
        let use_35 = "head -c 100m /dev/zero | tail -c 35m | wc -c";
        assert_eq!(sh(&started.docker, use_35).await.0.trim(), "36700160", "35 MiB fit into 64");
        sh(&started.docker, "until echo | nc localhost 7002; do sleep 0.05; done").await;
        let mut full = [0u8; 5];
        started.services[0].output.read_exact(&mut full).await.expect("what it says");
        let (text, _) = sh(&started.docker, use_35).await;
        assert_ne!(text.trim(), "36700160", "35 MiB fit beside 40 into 64");
        assert!(started.docker.explain(137).await.is_some_and(|why| why.starts_with("oom_killed")), "{text}");
    }
    started.docker.end().await;
    assert_eq!((left(engine, &started.placement).as_str(), groups()), ("", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_share_the_network_and_show_what_they_say() {
    let Some(engine) = testkit::docker::engine() else { return };
    engine.image("gantry-fixture-service:1", &[
        "ENTRYPOINT [\"/bin/sh\", \"-c\", \"echo service of $WHO up; while :; do echo pong | nc -l -p 5432; done\"]",
    ]);
    let service = Container {
        name: Some("db".into()),
        environment: vec![("WHO".into(), "one".into())],
        ..container("gantry-fixture-service:1")
    };
    let command = Container {
        command: Some(vec!["false".into()]),
        entrypoint: Some(vec!["/bin/env".into()]),
        ..container(testkit::docker::IMAGE)
    };
    let primary = Container {
        environment: vec![("OF_PRIMARY".into(), "1".into())],
        ..container(testkit::docker::IMAGE)
    };
    let mut started = start(engine, order(vec![primary, service, command])).await.expect("containers");
    let (text, _) = sh(&started.docker, "until nc db 5432; do sleep 0.05; done; until nc localhost 5432; do sleep 0.05; done; echo $OF_PRIMARY$WHO").await;
    let pongs: Vec<&str> = text.lines().filter(|line| !line.starts_with("nc:")).collect();
    assert_eq!(pongs, ["pong", "pong", "1"], "{text}");
    let failed = started.services.pop().expect("two services");
    assert_eq!(failed.exit.await.expect("its end"), Some(1), "its command replaced the image's");
    let mut first = [0u8; 18];
    started.services[0].output.read_exact(&mut first).await.expect("what it says");
    assert_eq!(&first, b"service of one up\n");
    started.docker.end().await;
    assert_eq!(left(engine, &started.placement), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entrypoints_follow_the_rules() {
    let Some(engine) = testkit::docker::engine() else { return };
    let entrypoint = "ENTRYPOINT [\"/bin/sh\", \"-c\", \"echo entry > /tmp/entry; sleep 1000\"]";
    engine.image("gantry-fixture-entry:1", &[entrypoint]);
    engine.image("gantry-fixture-kept:1", &[entrypoint, "LABEL com.circleci.preserve-entrypoint=true"]);
    let ran = async |container: Container| {
        let started = start(engine, order(vec![container])).await.expect("containers");
        let script = "i=0; while [ $i -lt 20 ]; do [ -e /tmp/entry ] && break; sleep 0.02; i=$((i+1)); done; cat /tmp/entry 2>/dev/null";
        let (text, _) = sh(&started.docker, script).await;
        started.docker.end().await;
        text
    };
    assert_eq!(ran(container("gantry-fixture-entry:1")).await, "", "an image's entrypoint is ignored");
    assert_eq!(ran(container("gantry-fixture-kept:1")).await, "entry\n", "unless it has the label");
    let given = vec!["/bin/sh".into(), "-c".into(), "echo given > /tmp/entry; sleep 1000".into()];
    let other = Container { entrypoint: Some(given), ..container("gantry-fixture-entry:1") };
    assert_eq!(ran(other).await, "given\n", "or the job has one");

    let ends = Container {
        entrypoint: Some(vec!["/bin/sh".into(), "-c".into(), "exit 7".into()]),
        ..container(testkit::docker::IMAGE)
    };
    let started = start(engine, order(vec![ends])).await.expect("containers");
    assert!(started.docker.failed().await.contains("exit code 7"));
    started.docker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_is_said_and_leaves_nothing() {
    let Some(engine) = testkit::docker::engine() else { return };
    let refused = async |containers: Vec<Container>| match start(engine, order(containers)).await {
        Ok(_) => panic!("it was started"),
        Err(error) => error.to_string(),
    };
    let text = refused(vec![container("no-such-image:1")]).await;
    assert!(text.contains("no-such-image:1 is not on this machine"), "{text}");
    let text =
        refused(vec![Container { user: Some("nobody-here".into()), ..container(testkit::docker::IMAGE) }])
            .await;
    assert!(text.starts_with("Error response from daemon: ") && text.contains("nobody-here"), "{text}");
    let service =
        Container { entrypoint: Some(vec!["/no/such/program".into()]), ..container(testkit::docker::IMAGE) };
    let text = refused(vec![container(testkit::docker::IMAGE), service]).await;
    assert!(text.contains("/no/such/program"), "{text}");
    let mut secret = Container {
        auth: Some(RegistryAuth::Basic { username: "u$NAME".into(), password: "${PASS}-$$".into() }),
        ..container("x")
    };
    let text =
        executors_docker::fill_auth(&mut secret, &[("NAME".into(), "1".into())]).unwrap_err().to_string();
    assert!(text.contains("$PASS"), "{text}");
    executors_docker::fill_auth(&mut secret, &[("NAME".into(), "1".into()), ("PASS".into(), "2".into())])
        .unwrap();
    assert_eq!(secret.auth, Some(RegistryAuth::Basic { username: "u1".into(), password: "2-$$".into() }));
    let gone = Config { socket: "/no/such/engine.sock".into(), ..Config::default() };
    let text = Engine::connect(gone).await.err().expect("no engine").to_string();
    assert!(text.contains("/no/such/engine.sock") && text.contains("[executors.engine] socket"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_come_from_a_registry_for_who_may_have_them() {
    let Some(engine) = testkit::docker::engine() else { return };
    let Some(registry) = testkit::docker::Registry::start(engine) else { return };
    let name = registry.push(engine, testkit::docker::IMAGE, "team/tool:1");
    let of = |image: &str, password: Option<&str>| Container {
        auth: password.map(|password| RegistryAuth::Basic {
            username: testkit::docker::USER.into(),
            password: password.into(),
        }),
        ..container(image)
    };
    let begin = async |pull: Pull, containers: Vec<Container>| {
        start_on(Config { pull, ..config(engine) }, order(containers)).await
    };
    let refused = async |pull: Pull, container: Container| match begin(pull, vec![container]).await {
        Ok(_) => panic!("it was started"),
        Err(error) => error.to_string(),
    };
    let log = async |pull: Pull, container: Container| {
        let started = begin(pull, vec![container]).await.expect("containers");
        assert_eq!(sh(&started.docker, "echo up").await, ("up\n".to_owned(), 0));
        started.docker.end().await;
        started.log
    };
    let right = Some(testkit::docker::PASSWORD);

    for wrong in [None, Some("guessed")] {
        let text = refused(Pull::Missing, of(&name, wrong)).await;
        assert!(text.starts_with("Error response from daemon: "), "{text}");
        assert!(text.contains("unauthorized") || text.contains("no basic auth credentials"), "{text}");
        assert!(!text.contains("guessed"), "{text}");
    }
    let pulled = log(Pull::Missing, of(&name, right)).await;
    let untagged = name.strip_suffix(":1").expect("a tag");
    let digest = pulled.split("using image ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let digest = digest.expect("the image is told").to_owned();
    assert!(digest.starts_with(&format!("{untagged}@sha256:")), "{pulled}");
    assert!(pulled.contains("image not found on this machine, downloading"), "{pulled}");
    assert!(pulled.contains("pull stats: ") && !pulled.contains("Warning: no registry"), "{pulled}");

    // By its digest, and again by its tag: it is there already.
    assert!(log(Pull::Missing, of(&digest, right)).await.contains(&digest));
    let again = log(Pull::Always, of(&name, right)).await;
    assert!(again.contains("image is on this machine already") && again.contains(&digest), "{again}");
    // That another job pulled it gives nobody a right to it.
    let text = refused(Pull::Always, of(&name, Some("guessed"))).await;
    assert!(text.contains("the registry is asked for each job"), "{text}");

    // Each entry has its own credentials, and a tag that moved on is noticed.
    engine.image("gantry-fixture:moved", &["LABEL moved=on"]);
    registry.push(engine, "gantry-fixture:moved", "team/tool:1");
    let service = Container { command: Some(vec!["sleep".into(), "60".into()]), ..of(&name, right) };
    let both = begin(Pull::Always, vec![of(&name, right), service]).await.expect("containers");
    assert!(both.log.contains("downloading") && !both.log.contains(&digest), "{}", both.log);
    both.docker.end().await;
    let primary = container(testkit::docker::IMAGE);
    let service = of(&name, Some("guessed"));
    let text = match begin(Pull::Always, vec![primary, service]).await {
        Ok(_) => panic!("it was started"),
        Err(error) => error.to_string(),
    };
    assert!(text.contains("the registry is asked for each job"), "{text}");
    engine.client(&["rmi", "-f", &name, "gantry-fixture:moved"]);
}

/// A lease of a job in containers.
fn docker_lease(containers: Vec<Container>, steps: Vec<model::plan::Step>) -> agent_api::Lease {
    let mut lease = lease(steps);
    lease.permit = false;
    lease.spec.containers = true;
    lease.spec.resources =
        agent_api::Resources { class: "small".into(), cpu_millis: Some(1000), memory_bytes: Some(256 << 20) };
    lease.spec.definition.executor = Executor::Docker { containers };
    lease.spec.definition.shell = Some("/bin/sh -eo pipefail".into());
    lease
}

fn suite_with(
    engine: &testkit::docker::Engine,
    lease: agent_api::Lease,
    secrets: Vec<(String, String)>,
) -> Arc<Suite> {
    let suite = Suite::with_secrets(lease, secrets);
    let config = config(engine);
    *suite.engine.lock().unwrap() = Some(agent_api::Engine {
        socket: config.socket,
        pull: "never".into(),
        pids: config.pids,
        no_new_privileges: false,
        network: config.network,
        remote_docker_image: config.remote_docker_image,
    });
    suite
}

fn label(lease: &agent_api::Lease) -> String {
    format!("task-{}-{}", lease.task_id, lease.epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_in_its_containers() {
    let Some(engine) = testkit::docker::engine() else { return };
    let primary = Container {
        environment: vec![("OF_CONTAINER".into(), "c".into()), ("BOTH".into(), "container".into())],
        ..container(testkit::docker::IMAGE)
    };
    let service = Container {
        name: Some("side".into()),
        command: Some(["/bin/sh", "-c", "echo at your service; sleep 1000"].map(str::to_owned).to_vec()),
        ..container(testkit::docker::IMAGE)
    };
    let mut lease = docker_lease(
        vec![primary, service],
        vec![
            run(
                "pwd; id -un; echo $HOME $OF_CONTAINER $BOTH $SECRET $CIRCLE_JOB; [ -t 1 ] && echo tty; echo 'export PASSED=on' >> \"$BASH_ENV\"",
            ),
            run(&format!("# {}\necho a long script", "x".repeat(200_000))),
            step(|s| {
                s.background = true;
                s.command = "echo behind; sleep 1000".into();
            }),
            run("ping -c 1 side >/dev/null 2>&1 || grep -q '127.0.0.1.*side' /etc/hosts && echo named"),
            run("circleci --version; circleci step halt; echo to the end"),
            run("echo not reached"),
        ],
    );
    lease.spec.definition.environment = vec![("BOTH".into(), "job".into())];
    let placement = label(&lease);
    let suite = suite_with(engine, lease, vec![("SECRET".into(), "hidden-value".into())]);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success", "{}", suite.log(0));
    assert_eq!(suite.log(101), "/root/project\nroot\n/root c job **REDACTED** build\ntty\n");
    assert_eq!(suite.log(102), "a long script\n");
    assert_eq!(suite.log(104), "named\n");
    assert!(suite.log(105).contains("gantry-runner ") && suite.log(105).ends_with("to the end\n"));
    let spin_up = suite.log(0);
    for line in [
        "Resource class small",
        "Docker engine ",
        &format!("Starting container {}", testkit::docker::IMAGE),
        "using image",
        "Time to start containers",
        "Docker executor; isolation: a container of its own",
    ] {
        assert!(spin_up.contains(line), "{line} is not in {spin_up}");
    }
    assert_eq!(suite.log(1), "at your service\n");
    assert_eq!(suite.seen.lock().unwrap().permits, 1);
    assert!([0, 1, 99, 101, 102, 103, 104, 105].into_iter().all(|n| suite.is_sealed(n)));
    assert_eq!(left(engine, &placement), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_agents_containers_end_and_its_log_is_delivered() {
    let Some(engine) = testkit::docker::engine() else { return };
    let service =
        Container { command: Some(vec!["sleep".into(), "1000".into()]), ..container(testkit::docker::IMAGE) };
    let lease =
        docker_lease(vec![container(testkit::docker::IMAGE), service], vec![run("echo begun; sleep 1000")]);
    let placement = label(&lease);
    let suite = suite_with(engine, lease, vec![]);
    let mut agent = suite.agent("none", None, vec![]);
    suite
        .until("the step writes", |seen| {
            seen.steps.get(&101).is_some_and(|s| seen.streams.contains_key(&s.step_id))
        })
        .await;
    assert_eq!(left(engine, &placement).lines().count(), 2);
    agent.kill().await.unwrap();
    // The primary container ends by itself; the rest is the sweep's.
    crate::suite::eventually("the primary container is gone", || {
        left(engine, &placement).lines().count() == 1
    })
    .await;
    assert!(suite.task_dir().join(agent_api::CONTAINERS_FILE).exists(), "a sweep knows that it has to ask");
    let sweeper = Engine::connect(config(engine)).await.unwrap();
    executors_docker::sweep(&sweeper, &placement).await.unwrap();
    assert_eq!(left(engine, &placement), "");
    // Started again it runs nothing and says what it knows.
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "infrastructure_fail");
    assert!(suite.log(101).starts_with("begun\n\nThe agent died here"), "{}", suite.log(101));
    assert!(suite.is_sealed(101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_permit_nothing_runs() {
    let Some(engine) = testkit::docker::engine() else { return };
    let lease = docker_lease(vec![container(testkit::docker::IMAGE)], vec![run("echo no")]);
    let placement = label(&lease);
    let suite = suite_with(engine, lease, vec![("S".into(), "secret".into())]);
    suite.seen.lock().unwrap().no_permit = Some("canceled");
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "canceled");
    assert!(!suite.seen.lock().unwrap().steps.contains_key(&101));
    assert_eq!(left(engine, &placement), "");

    let missing = docker_lease(vec![container("no-such-image:1")], vec![run("echo no")]);
    let suite = suite_with(engine, missing, vec![]);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "infrastructure_fail");
    assert!(suite.log(0).contains("no-such-image:1 is not on this machine"), "{}", suite.log(0));
    assert_eq!(suite.seen.lock().unwrap().permits, 0, "the task may be tried elsewhere");
}

const DOCKER: &str = testkit::docker::DOCKER_IMAGE;

/// A job in containers of Docker's own image, where the operator allows an engine of that image, or of none.
fn with_remote_docker(
    engine: &testkit::docker::Engine,
    image: Option<&str>,
    steps: Vec<model::plan::Step>,
) -> (Arc<Suite>, String) {
    engine.docker_image(DOCKER);
    let mut lease = docker_lease(vec![container(DOCKER)], steps);
    lease.spec.resources.memory_bytes = Some(1 << 30);
    let placement = label(&lease);
    let suite = suite_with(engine, lease, vec![]);
    suite.engine.lock().unwrap().as_mut().unwrap().remote_docker_image = image.map(str::to_owned);
    (suite, placement)
}

fn setup(docker_layer_caching: bool, version: Option<&str>) -> model::plan::Step {
    let name = "Setup a remote Docker engine".into();
    model::plan::Step::SetupRemoteDocker {
        docker_layer_caching,
        version: version.map(str::to_owned),
        name,
        when: Default::default(),
    }
}

/// Containers and networks of a placement.
fn all_left(engine: &testkit::docker::Engine, placement: &str) -> String {
    let label = format!("label=gantry.placement={placement}");
    left(engine, placement) + &engine.client(&["network", "ls", "-q", "--filter", &label])
}

/// Execution §24: the engine is the job's own, reached over TLS alone, and goes with the job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_an_engine_of_its_own() {
    let Some(engine) = testkit::docker::engine() else { return };
    let (suite, placement) = with_remote_docker(
        engine,
        Some(DOCKER),
        vec![
            run("docker version >/dev/null 2>&1 || echo none yet"),
            setup(true, Some("20.10.24")),
            run(
                "docker version --format 'server {{.Server.Version}}'; docker ps -aq; docker info --format '{{.Name}}'",
            ),
            run(
                "mkdir -p root/bin && cp /bin/busybox root/bin && tar -C root -c . | docker import - small >/dev/null; \
                 docker run --name kept --network none small /bin/busybox sh -c 'echo in a container; echo made > /made'; \
                 docker cp kept:/made . >/dev/null 2>&1 && cat made",
            ),
            run("curl -sS http://remote-docker:2376/containers/json 2>&1 || true; echo; \
                 curl -sSk https://remote-docker:2376/containers/json 2>&1 || echo refused"),
            setup(false, None),
            run(
                "docker ps -a --format '{{.Names}}'; stat -c %a $DOCKER_CERT_PATH/key.pem; echo $DOCKER_TLS_VERIFY $DOCKER_MACHINE_NAME $DOCKER_HOST",
            ),
        ],
    );
    let status = suite.finished(suite.agent("none", None, vec![])).await;
    let said = (101..=107).map(|number| suite.log(number)).collect::<Vec<_>>().join("----\n");
    assert_eq!(status, "success", "{said}");
    assert_eq!(suite.log(101), "none yet\n");
    for part in [
        "Allocating a remote Docker Engine\n",
        "Remote Docker Engine is ready after ",
        "`version: 20.10.24` has no effect",
        "`docker_layer_caching` has no effect",
        "Created container accessible with:\n  DOCKER_TLS_VERIFY=1\n  DOCKER_HOST=tcp://remote-docker:2376\n",
    ] {
        assert!(suite.log(102).contains(part), "{part} is not in {}", suite.log(102));
    }
    let own = suite.log(103);
    assert!(own.starts_with("server ") && own.ends_with("\nremote-docker\n"), "{own}");
    assert_eq!(own.lines().count(), 2, "it begins with no containers: {own}");
    assert_eq!(suite.log(104), "in a container\nmade\n");
    assert!(
        suite.log(105).starts_with("Client sent an HTTP request to an HTTPS server"),
        "{}",
        suite.log(105)
    );
    assert!(suite.log(105).ends_with("refused\n"), "{}", suite.log(105));
    assert_eq!(suite.log(107), "kept\n600\n1 remote-docker tcp://remote-docker:2376\n", "it is the same one");
    assert_eq!(all_left(engine, &placement), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_removes_a_dead_agents_engine() {
    let Some(engine) = testkit::docker::engine() else { return };
    let steps = vec![setup(false, None), run("echo up; sleep 1000")];
    let (suite, placement) = with_remote_docker(engine, Some(DOCKER), steps);
    let mut agent = suite.agent("none", None, vec![]);
    suite
        .until("the step writes", |seen| {
            seen.steps.get(&102).is_some_and(|s| seen.streams.contains_key(&s.step_id))
        })
        .await;
    assert_eq!(all_left(engine, &placement).lines().count(), 3, "two containers in a network");
    agent.kill().await.unwrap();
    let sweeper = Engine::connect(config(engine)).await.unwrap();
    executors_docker::sweep(&sweeper, &placement).await.unwrap();
    assert_eq!(all_left(engine, &placement), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_cannot_be_had_fails_its_step_with_the_reason() {
    let Some(engine) = testkit::docker::engine() else { return };
    engine
        .image("gantry-fixture-broken:1", &["ENTRYPOINT [\"/bin/sh\", \"-c\", \"echo no licence; exit 3\"]"]);
    let idle =
        "mkdir -p /var/run; printf '#!/bin/sh\\nexit 0\\n' > /bin/docker; chmod +x /bin/docker; sleep 1000";
    engine.image(
        "gantry-fixture-idle:1",
        &[&format!("ENTRYPOINT [\"/bin/sh\", \"-c\", {}]", serde_json::Value::from(idle))],
    );
    for (image, reason) in [
        (None, "This server has no remote Docker engine."),
        (Some("no-such-engine:1"), "the image no-such-engine:1 is not on this machine"),
        (Some("gantry-fixture-broken:1"), "The remote Docker engine ended. It said last:\nno licence\n"),
        (Some("gantry-fixture-idle:1"), "has made no ca.pem, cert.pem, key.pem"),
    ] {
        let steps = vec![setup(false, None), run("echo not reached")];
        let (suite, placement) = with_remote_docker(engine, image, steps);
        assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "failed", "{image:?}");
        assert!(suite.log(101).contains(reason), "{image:?}: {}", suite.log(101));
        assert_eq!(all_left(engine, &placement), "", "{image:?}");
    }
}
