//! The adapter on a real cluster: one server, two clients, ACLs on, and a token with the policy that the docs give.

use compute::{Compute, Demand, Error, Phase, Placement, Running, contract};
use gantry_compute_nomad::{Config, Constraint, Driver, Nomad, Pool};
use ids::TaskId;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use testkit::NomadCluster;

const LIMIT: Duration = Duration::from_secs(60);

fn pool(program: &Path) -> Pool {
    Pool {
        classes: Vec::new(),
        executors: Vec::new(),
        region: String::new(),
        namespace: "gantry".to_owned(),
        datacenters: vec!["*".to_owned()],
        node_pool: "default".to_owned(),
        constraints: Vec::new(),
        driver: Driver::RawExec,
        agent: program.display().to_string(),
        isolation: "none".to_owned(),
        job_user: None,
        engine: None,
        mhz: 1000,
    }
}

fn config(cluster: &NomadCluster, token: &str, pools: Vec<Pool>) -> Config {
    Config {
        address: cluster.address.clone(),
        token: token.to_owned(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        kill_timeout: Duration::from_secs(5),
        ssh: None,
        pools,
        ..Config::default()
    }
}

struct World {
    cluster: NomadCluster,
    token: String,
    scratch: tempfile::TempDir,
}

impl World {
    async fn new() -> Option<Self> {
        let cluster = testkit::nomad(None).await?;
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy.hcl");
        let token = cluster.scheduler_token(&policy);
        let scratch = tempfile::tempdir().unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { cluster, token, scratch })
    }

    fn adapter(&self, pools: Vec<Pool>) -> Nomad {
        Nomad::open(config(&self.cluster, &self.token, pools)).unwrap()
    }

    /// A program that notes its start, with where it runs, and does `then`.
    fn program(&self, then: &str) -> PathBuf {
        let (folder, file) = (self.scratch.path().display(), self.scratch.path().join("agent.sh"));
        let script = format!("#!/bin/sh\necho \"$NOMAD_TASK_DIR\" >> '{folder}/starts'\n{then}\n");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// Folders of all starts until now.
    fn starts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.scratch.path().join("starts")).unwrap_or_default();
        text.lines().map(PathBuf::from).collect()
    }

    async fn first_start(&self) -> PathBuf {
        testkit::until("the agent starts", LIMIT, || async { !self.starts().is_empty() }).await;
        self.starts().remove(0)
    }
}

fn placement() -> Placement {
    let task_id = TaskId::new();
    let demand = Demand {
        executor: "machine".to_owned(),
        class: "medium".to_owned(),
        cpu_millis: Some(100),
        memory_bytes: Some(32 << 20),
    };
    Placement {
        name: Placement::name_of(task_id, 1),
        task_id,
        epoch: 1,
        token: "one-time".to_owned(),
        demand,
    }
}

async fn phase(compute: &Nomad, name: &str) -> Option<Phase> {
    let all: Vec<Running> = compute.list().await.unwrap();
    all.into_iter().find(|running| running.name == name).map(|running| running.phase)
}

async fn reaches(compute: &Nomad, name: &str, what: &str, wanted: impl Fn(&Phase) -> bool) {
    testkit::until(what, LIMIT, || async { phase(compute, name).await.is_some_and(|phase| wanted(&phase)) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nomad_adapter_keeps_the_contract() {
    let Some(world) = World::new().await else { return };
    let make = |program: &Path| -> Arc<dyn Compute> { Arc::new(world.adapter(vec![pool(program)])) };
    contract::suite(&make, world.scratch.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_has_its_task_go_on_and_nobody_starts_another() {
    let Some(mut world) = World::new().await else { return };
    let compute = world.adapter(vec![pool(&world.program("exec sleep 600"))]);
    let placement = placement();
    compute.start(&placement).await.unwrap();
    let client = world.cluster.client_of(&world.first_start().await).unwrap();
    // One that Nomad takes for not begun would be begun elsewhere: then the first start that shows itself has the token.
    testkit::until("Nomad knows that it runs", LIMIT, || async {
        world.cluster.starts_of(&placement.name) == ["running"]
    })
    .await;
    world.cluster.kill_client(client);
    testkit::until("Nomad has missed the client and looked at its tasks", LIMIT, || async {
        let status = world.cluster.node(client).is_some_and(|(_, status)| status != "ready");
        status && world.cluster.starts_of(&placement.name) == ["unknown"]
    })
    .await;
    assert_eq!(
        phase(&compute, &placement.name).await,
        Some(Phase::Runs),
        "its lease says what becomes of it"
    );
    world.cluster.start_client(client);
    testkit::until("the client has it again", LIMIT, || async {
        world.cluster.starts_of(&placement.name) == ["running"]
    })
    .await;
    assert_eq!(world.starts().len(), 1);
    compute.remove(&placement.name).await.unwrap();
    assert_eq!(phase(&compute, &placement.name).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_has_forgotten_nothing() {
    let Some(mut world) = World::new().await else { return };
    let compute = world.adapter(vec![pool(&world.program("exec sleep 600"))]);
    let placement = placement();
    compute.start(&placement).await.unwrap();
    world.first_start().await;
    world.cluster.kill_server();
    let away = compute.list().await.unwrap_err();
    assert!(matches!(&away, Error::Scheduler(text) if text.contains("cannot be reached")), "{away}");
    compute.start(&placement).await.unwrap_err();
    world.cluster.start_server();
    testkit::until("it answers", LIMIT, || async { compute.start(&placement).await.is_ok() }).await;
    reaches(&compute, &placement.name, "it runs", |phase| *phase == Phase::Runs).await;
    assert_eq!(world.starts().len(), 1, "it was not started again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_a_task_end_and_a_second_start_is_told_from_the_first() {
    let Some(world) = World::new().await else { return };
    // Says who it is, as the agent does, and stays until it is told to end.
    let identity = world.scratch.path().join("identity");
    let keep = format!(
        "cat \"$NOMAD_SECRETS_DIR/nomad_gantry.jwt\" > {0}.$$; mv {0}.$$ {0}\nexec sleep 600",
        identity.display()
    );
    let compute = world.adapter(vec![pool(&world.program(&keep))]);
    let placement = placement();
    compute.start(&placement).await.unwrap();
    let client = world.cluster.client_of(&world.first_start().await).unwrap();
    testkit::until("it says who it is", LIMIT, || async { identity.exists() }).await;
    let first =
        compute.identify(&fs::read_to_string(&identity).unwrap(), SystemTime::now().into()).await.unwrap();
    assert_eq!(first.placement, placement.name);
    fs::remove_file(&identity).unwrap();
    let (node, _) = world.cluster.node(client).unwrap();
    world.cluster.run(&["node", "drain", "-enable", "-deadline=5s", "-yes", "-detach", &node]);
    testkit::until("Nomad starts it elsewhere", LIMIT, || async { identity.exists() }).await;
    let second =
        compute.identify(&fs::read_to_string(&identity).unwrap(), SystemTime::now().into()).await.unwrap();
    assert_eq!(second.placement, placement.name);
    assert_ne!(first.instance, second.instance, "whoever hands out tokens sees that this is another start");
    compute.remove(&placement.name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_machine_waits_and_says_why() {
    let Some(world) = World::new().await else { return };
    let program = world.program("exec sleep 600");
    let arm = Constraint {
        attribute: "${attr.cpu.arch}".to_owned(),
        operator: "=".to_owned(),
        value: "s390x".to_owned(),
    };
    let elsewhere = Pool { classes: vec!["mainframe".to_owned()], constraints: vec![arm], ..pool(&program) };
    let here = Pool { classes: vec!["huge".to_owned(), "medium".to_owned()], ..pool(&program) };
    let compute = world.adapter(vec![here, elsewhere]);
    let mut huge = placement();
    huge.demand = Demand { class: "huge".to_owned(), memory_bytes: Some(1 << 40), ..huge.demand };
    let mut mainframe = placement();
    mainframe.demand.class = "mainframe".to_owned();
    for (placement, wanted) in [
        (&huge, "there is not enough memory (it asks for 1048576 MiB) on 2 of 2 machines"),
        (&mainframe, "2 of 2 machines do not meet `${attr.cpu.arch} = s390x`"),
    ] {
        compute.start(placement).await.unwrap();
        reaches(
            &compute,
            &placement.name,
            wanted,
            |phase| matches!(phase, Phase::Waits { why: Some(why) } if why.contains(wanted)),
        )
        .await;
    }
    assert!(world.starts().is_empty());
    let mut unknown = placement();
    unknown.demand.class = "unknown".to_owned();
    let refused = compute.start(&unknown).await.unwrap_err().to_string();
    assert!(refused.contains("unknown") && refused.contains("[[compute.pools]]"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_and_identities_are_checked() {
    let Some(world) = World::new().await else { return };
    let identity = world.scratch.path().join("identity");
    let keep = format!(
        "cat \"$NOMAD_SECRETS_DIR/nomad_gantry.jwt\" > {0}.new; mv {0}.new {0}\nsleep 1; exit 7",
        identity.display()
    );
    let compute = world.adapter(vec![pool(&world.program(&keep))]);
    // The stream of events is open; what came before it is one hint.
    tokio::time::timeout(LIMIT, compute.changed()).await.expect("it listens");
    let placement = placement();
    compute.start(&placement).await.unwrap();
    tokio::time::timeout(LIMIT, compute.changed()).await.expect("the end of an agent is told");
    reaches(&compute, &placement.name, "it has ended", |phase| *phase == Phase::Ended).await;
    let proof = fs::read_to_string(&identity).unwrap();
    assert_eq!(compute.identify(&proof, SystemTime::now().into()).await.unwrap().placement, placement.name);

    let [head, body, signature] = proof.split('.').collect::<Vec<_>>()[..] else { panic!("no JWT: {proof}") };
    let other = format!("{head}.{}.{signature}", body.replacen('J', "K", 1));
    let unsigned = format!("{head}.{body}.");
    for forged in [other.as_str(), unsigned.as_str(), "", "a.b.c", world.token.as_str()] {
        let refused = compute.identify(forged, SystemTime::now().into()).await.unwrap_err();
        assert!(matches!(refused, Error::Identity(_)), "{forged:?}: {refused}");
    }
    let day = Duration::from_secs(24 * 3600);
    for then in [SystemTime::now() - day, SystemTime::now() + 400 * day] {
        let refused = compute.identify(&proof, then.into()).await.unwrap_err();
        assert!(refused.to_string().contains("holds no more, or not yet"), "{refused}");
    }
    // Nomad's signature is not enough: an installation next door has jobs of the same kind.
    let next_door =
        world.adapter(vec![Pool { namespace: "other".to_owned(), ..pool(Path::new("/bin/true")) }]);
    let refused = next_door.identify(&proof, SystemTime::now().into()).await.unwrap_err();
    assert!(refused.to_string().contains("namespace gantry is not ours"), "{refused}");
    // What the agent holds opens none of Nomad's API.
    let mut thief = config(&world.cluster, &proof, vec![pool(Path::new("/bin/true"))]);
    thief.token = proof;
    let refused = Nomad::open(thief).unwrap().list().await.unwrap_err().to_string();
    assert!(refused.contains("403") || refused.contains("401") || refused.contains("500"), "{refused}");
}

/// With the driver `docker` the agent is in a container of its image, with no more rights than that needs.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_a_container_has_its_folder_and_its_identity() {
    const IMAGE: &str = "gantry-agent-on-nomad:1";
    let Some(engine) = testkit::docker::engine() else { return };
    let Some(cluster) = testkit::nomad_with_engine(&engine.socket).await else { return };
    // Keeps what it was given, and ends as it is told to.
    let script = "#!/bin/sh\n[ \"$1\" = --placed ] && mkdir -p \"$2\" && cp \"$3\" \"$2/identity\" || exit 3\n\
                  echo \"$GANTRY_LAUNCH\" > \"$2/launch\"\ncp /proc/self/status \"$2/status\"\n\
                  trap 'touch \"$2/told\"; exit 0' TERM\nmkdir \"$2/ready\"\nwhile :; do sleep 0.1; done\n";
    engine.script_image(IMAGE, "/opt/agent", script);
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy.hcl");
    let token = cluster.scheduler_token(&policy);
    let driver = |image: &str| Pool {
        driver: Driver::Docker { image: image.to_owned() },
        ..pool(Path::new("/opt/agent"))
    };
    let compute = Nomad::open(config(&cluster, &token, vec![driver(IMAGE)])).unwrap();
    let placed = placement();
    compute.start(&placed).await.unwrap();
    let given = || cluster.folder_of(&placed.name).join("local/agent");
    reaches(&compute, &placed.name, "it runs", |phase| *phase == Phase::Runs).await;
    testkit::until("the agent has begun", LIMIT, || async { given().join("ready").exists() }).await;
    let proof = fs::read_to_string(given().join("identity")).unwrap();
    assert_eq!(compute.identify(&proof, SystemTime::now().into()).await.unwrap().placement, placed.name);
    let launch = fs::read_to_string(given().join("launch")).unwrap();
    assert!(launch.contains("http://127.0.0.1:1") && !launch.contains("one-time"), "{launch}");
    let status = fs::read_to_string(given().join("status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let held = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let administers = u64::from_str_radix(held, 16).unwrap() >> 21 & 1;
    assert_eq!(administers, 0, "CAP_SYS_ADMIN is not among its rights: {held}");
    assert_eq!(engine.client(&["ps", "-q", "--filter", &format!("ancestor={IMAGE}")]).lines().count(), 1);

    // Told, waited for, and gone.
    compute.stop(&placed.name).await.unwrap();
    testkit::until("the agent was told", LIMIT, || async { given().join("told").exists() }).await;
    testkit::until("its container is gone", LIMIT, || async {
        engine.client(&["ps", "-aq", "--filter", &format!("ancestor={IMAGE}")]).is_empty()
    })
    .await;
    reaches(&compute, &placed.name, "it has ended", |phase| *phase == Phase::Ended).await;

    // An image that cannot be had: an end, which the lease rules over, and no second try.
    let compute = Nomad::open(config(&cluster, &token, vec![driver("127.0.0.1:1/none:1")])).unwrap();
    let nowhere = placement();
    compute.start(&nowhere).await.unwrap();
    reaches(&compute, &nowhere.name, "it has ended", |phase| *phase == Phase::Ended).await;
    assert_eq!(cluster.starts_of(&nowhere.name), ["failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_the_namespace_is_refused_in_words() {
    let Some(world) = World::new().await else { return };
    let elsewhere = Pool { namespace: "default".to_owned(), ..pool(Path::new("/bin/true")) };
    let refused = world.adapter(vec![elsewhere]).start(&placement()).await.unwrap_err().to_string();
    assert!(refused.contains("403") && refused.contains("Permission denied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    fs::write(file("ca"), params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let ca = rcgen::Issuer::new(params, ca_key);
    for name in ["server", "client"] {
        let names = ["127.0.0.1", "localhost", "server.global.nomad"].map(str::to_owned).to_vec();
        let (params, key) =
            (rcgen::CertificateParams::new(names).unwrap(), rcgen::KeyPair::generate().unwrap());
        fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let extra = format!(
        "tls {{\n  http = true\n  verify_https_client = true\n  ca_file = \"{}\"\n  cert_file = \"{}\"\n  key_file = \"{}\"\n}}\n",
        file("ca").display(),
        file("server.pem").display(),
        file("server.key").display()
    );
    let Some(cluster) = testkit::nomad(Some(extra)).await else { return };
    let secure = Config {
        address: cluster.address.replace("http://", "https://"),
        ca: Some(file("ca")),
        identity: Some((file("client.pem"), file("client.key"))),
        ..config(&cluster, "00000000-0000-0000-0000-000000000000", vec![pool(Path::new("/bin/true"))])
    };
    // Let in by its certificate; the token is another matter.
    let entered = Nomad::open(secure.clone()).unwrap();
    testkit::until("it answers", LIMIT, || async {
        entered.list().await.is_err_and(|error| error.to_string().contains("403"))
    })
    .await;
    let outside = Nomad::open(Config { identity: None, ..secure.clone() }).unwrap().list().await.unwrap_err();
    assert!(outside.to_string().contains("cannot be reached"), "{outside}");
    let unknown = Nomad::open(Config { ca: None, ..secure }).unwrap().list().await.unwrap_err();
    assert!(unknown.to_string().contains("certificate"), "{unknown}");
}
