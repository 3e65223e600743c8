//! A suite that answers as the agent API says, in this process, over a Unix socket.

use agent_api::stores::{ArtifactUploads, Committed, Upload, Uploads};
use agent_api::{
    CHUNK_CRC, ChunkAck, Claim, Commands, FinalReport, JobUser, LAUNCH_FILE, LaunchFile, Lease, Problem,
    Renewed, Seal, SealedSecrets, Secrets, Source, SshListen, SshSession, StepReport, TaskSpec, Timing,
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
    hkdf::{HKDF_SHA256, Salt},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ids::{JobId, OrgId, PipelineId, ProjectId, StepId, TaskId, WorkflowId};
use model::plan::{Executor, JobDefinition, RunStep, Step};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{net::UnixListener, process::Child, sync::watch, task::JoinHandle};

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Seen {
    pub claims: Vec<Claim>,
    pub renewals: u32,
    pub steps: BTreeMap<u32, StepReport>,
    /// All step reports in the order of their arrival.
    pub reports: Vec<(u32, String)>,
    pub streams: HashMap<StepId, Vec<u8>>,
    pub sealed: HashMap<StepId, Seal>,
    pub finals: Vec<FinalReport>,
    /// Answers that the next chunks get instead.
    pub gaps: u32,
    pub refuse_finish: u32,
    pub stale: bool,
    /// Start permits that were asked for.
    pub permits: u32,
    /// What is answered to who asks for one.
    pub no_permit: Option<&'static str>,
    pub no_renewals: bool,
    pub stream_limit: Option<usize>,
    /// Who entered and left by SSH.
    pub sessions: Vec<SshSession>,
    /// Whether the store refuses to work.
    pub store_away: bool,
    /// What the store took.
    pub stored: Vec<Bytes>,
}

pub struct Suite {
    dir: tempfile::TempDir,
    pub seen: Mutex<Seen>,
    changed: watch::Sender<u64>,
    cancel: watch::Sender<bool>,
    pub lease: Mutex<Lease>,
    pub secrets: Vec<(String, String)>,
    /// Whether it gives the secrets to nobody now.
    pub withheld: AtomicBool,
    pub source: Mutex<Option<Source>>,
    /// For jobs that ask for containers.
    pub engine: Mutex<Option<agent_api::Engine>>,
    /// Where agents listen for SSH.
    pub ssh: Mutex<Option<SshListen>>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

pub fn run(command: &str) -> Step {
    step(|s| s.command = command.into())
}

pub fn step(change: impl FnOnce(&mut RunStep)) -> Step {
    let mut step = RunStep { name: "step".into(), no_output_timeout_secs: 600, ..RunStep::default() };
    change(&mut step);
    Step::Run(step)
}

pub fn lease(steps: Vec<Step>) -> Lease {
    Lease {
        task_id: TaskId::new(),
        epoch: 1,
        fence: "fence-0".into(),
        permit: true,
        granted_at: Some(chrono::Utc::now()),
        timing: Timing {
            renew_ms: 200,
            self_stop_ms: 30_000,
            lease_ms: 60_000,
            grace_ms: 500,
            job_timeout_ms: 60_000,
            spool_bytes: 64 << 20,
            ssh_idle_ms: 600_000,
            ssh_total_ms: 7_200_000,
        },
        spec: TaskSpec {
            job_id: JobId::new(),
            job_name: "build".into(),
            job_number: 7,
            previous_number: Some(6),
            job_url: "http://localhost/jobs/7".into(),
            workflow_id: WorkflowId::new(),
            workspace_id: WorkflowId::new(),
            pipeline_id: PipelineId::new(),
            pipeline_number: 3,
            org_id: OrgId::new(),
            org: "local".into(),
            project_id: ProjectId::new(),
            repo: "demo".into(),
            revision: "0123456789012345678901234567890123456789".into(),
            branch: Some("main".into()),
            tag: None,
            username: None,
            repository_url: "http://localhost/git/local/demo.git".into(),
            upstream: Vec::new(),
            index: 0,
            total: 1,
            has_secrets: false,
            failed_tests: false,
            ssh: None,
            definition: JobDefinition {
                executor: Executor::Machine { image: None },
                resource_class: String::new(),
                environment: Vec::new(),
                working_directory: "~/project".into(),
                shell: None,
                parallelism: 1,
                steps,
                continues: false,
                auto_rerun_on_infra_fail: 0,
                cache_days: None,
            },
            containers: false,
            resources: agent_api::Resources::default(),
        },
    }
}

impl Suite {
    pub fn new(lease: Lease) -> Arc<Self> {
        Self::with_secrets(lease, Vec::new())
    }

    pub fn with_secrets(mut lease: Lease, secrets: Vec<(String, String)>) -> Arc<Self> {
        lease.spec.has_secrets = !secrets.is_empty();
        let this = Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            seen: Mutex::default(),
            changed: watch::Sender::new(0),
            cancel: watch::Sender::new(false),
            lease: Mutex::new(lease),
            secrets,
            withheld: AtomicBool::new(false),
            source: Mutex::default(),
            engine: Mutex::default(),
            ssh: Mutex::default(),
            serving: Mutex::default(),
        });
        this.serve();
        this
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub fn task_dir(&self) -> PathBuf {
        self.dir.path().join("task")
    }

    /// Begins to answer, for the first time or again.
    pub fn serve(self: &Arc<Self>) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let router = Router::new()
            .route("/v1/claim", post(claim))
            .route("/v1/tasks/{task}/start", post(start))
            .route("/v1/tasks/{task}/renew", post(renew))
            .route("/v1/tasks/{task}/finish", post(finish))
            .route("/v1/tasks/{task}/source", get(source))
            .route("/v1/tasks/{task}/commands", get(commands))
            .route("/v1/tasks/{task}/secrets", get(secrets))
            .route("/v1/tasks/{task}/steps", post(steps))
            .route("/v1/tasks/{task}/ssh", post(ssh))
            .route("/v1/tasks/{task}/stores/artifacts/uploads", post(places))
            .route("/v1/tasks/{task}/stores/artifacts/commit", post(stored))
            .route("/store/{object}", put(store))
            .route("/v1/tasks/{task}/streams/{step}/chunks", put(chunk))
            .route("/v1/tasks/{task}/streams/{step}/seal", post(seal))
            .with_state(Arc::clone(self));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        *self.serving.lock().unwrap() = Some(serving);
    }

    /// Goes away: no socket, and requests under way fail at the latest by their time limit.
    pub fn vanish(&self) {
        if let Some(serving) = self.serving.lock().unwrap().take() {
            serving.abort();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    fn note(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Starts the real agent.
    pub fn agent(&self, isolation: &str, job_user: Option<JobUser>, hide: Vec<String>) -> Child {
        self.agent_as(isolation, job_user, hide, None, &[])
    }

    pub fn agent_as(
        &self,
        isolation: &str,
        job_user: Option<JobUser>,
        hide: Vec<String>,
        uid: Option<u32>,
        env: &[(&str, String)],
    ) -> Child {
        let dir = self.task_dir();
        std::fs::create_dir_all(&dir).unwrap();
        let launch = LaunchFile {
            endpoint: format!("unix:{}", self.socket().display()),
            token: "one-time".into(),
            isolation: isolation.into(),
            job_user,
            hide,
            engine: self.engine.lock().unwrap().clone(),
            cgroup: None,
            ssh: self.ssh.lock().unwrap().clone(),
            max_run_ms: None,
        };
        std::fs::write(dir.join(LAUNCH_FILE), serde_json::to_vec(&launch).unwrap()).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gantry-runner"));
        command
            .arg("--task-dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("GANTRY_LOG", std::env::var("GANTRY_LOG").unwrap_or_else(|_| "warn".into()));
        if let Some(uid) = uid {
            use std::os::unix::fs::{PermissionsExt, chown};
            for path in [dir.clone(), dir.join(LAUNCH_FILE), self.socket()] {
                chown(path, Some(uid), Some(uid)).unwrap();
            }
            std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            command.uid(uid).gid(uid);
        }
        command.spawn().unwrap()
    }

    /// Waits until what the suite has seen fulfils a condition.
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let mut changed = self.changed.subscribe();
        let waited = async {
            while !holds(&self.seen.lock().unwrap()) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(LIMIT, waited).await.is_err() {
            panic!(
                "not in time: {what}; seen: {:?}, final {:?}",
                self.summary(),
                self.seen.lock().unwrap().finals
            );
        }
    }

    /// Waits for the final report and the end of the agent.
    pub async fn finished(&self, mut agent: Child) -> String {
        self.until("the final report", |seen| !seen.finals.is_empty()).await;
        let code = tokio::time::timeout(LIMIT, agent.wait()).await.expect("the agent ends").unwrap();
        assert!(code.success(), "the agent ended with {code}");
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.finals.len(), 1);
        seen.finals[0].status.to_string()
    }

    pub fn summary(&self) -> Vec<(u32, String, Option<i32>)> {
        let seen = self.seen.lock().unwrap();
        seen.steps.values().map(|s| (s.number, s.status.clone(), s.exit_code)).collect()
    }

    pub fn log(&self, number: u32) -> String {
        let seen = self.seen.lock().unwrap();
        let step = seen.steps.get(&number).unwrap_or_else(|| panic!("no step {number}"));
        String::from_utf8_lossy(seen.streams.get(&step.step_id).map_or(&[][..], Vec::as_slice)).into_owned()
    }

    pub fn is_sealed(&self, number: u32) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.steps.get(&number).is_some_and(|step| seen.sealed.contains_key(&step.step_id))
    }
}

fn problem(status: u16, code: &str, next_offset: Option<u64>) -> Response {
    let body = Problem { code: code.into(), message: code.into(), next_offset };
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

/// Refuses what is not of the newest lease.
#[expect(clippy::result_large_err, reason = "a refusal is the answer itself")]
fn check(suite: &Suite, headers: &HeaderMap) -> Result<(), Response> {
    if suite.seen.lock().unwrap().stale {
        return Err(problem(409, "stale_lease", None));
    }
    let given = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if given.starts_with("Bearer fence-") { Ok(()) } else { Err(problem(401, "unauthorized", None)) }
}

async fn claim(State(suite): State<Arc<Suite>>, Json(claim): Json<Claim>) -> Response {
    assert_eq!(claim.token, "one-time");
    suite.seen.lock().unwrap().claims.push(claim);
    suite.note();
    Json(suite.lease.lock().unwrap().clone()).into_response()
}

async fn start(State(suite): State<Arc<Suite>>, headers: HeaderMap) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    let refused = {
        let mut seen = suite.seen.lock().unwrap();
        seen.permits += 1;
        seen.no_permit
    };
    suite.note();
    match refused {
        Some(code) => problem(409, code, None),
        None => Json(serde_json::json!({})).into_response(),
    }
}

async fn renew(State(suite): State<Arc<Suite>>, headers: HeaderMap) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    let renewals = {
        let mut seen = suite.seen.lock().unwrap();
        if seen.no_renewals {
            return problem(503, "unavailable", None);
        }
        seen.renewals += 1;
        seen.renewals
    };
    suite.note();
    Json(Renewed { fence: format!("fence-{renewals}"), cancel: false }).into_response()
}

async fn finish(
    State(suite): State<Arc<Suite>>,
    headers: HeaderMap,
    Json(report): Json<FinalReport>,
) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    {
        let mut seen = suite.seen.lock().unwrap();
        if seen.refuse_finish > 0 {
            seen.refuse_finish -= 1;
            return problem(503, "unavailable", None);
        }
        seen.finals.push(report);
    }
    suite.note();
    Json(serde_json::json!({})).into_response()
}

async fn source(State(suite): State<Arc<Suite>>) -> Response {
    match suite.source.lock().unwrap().clone() {
        Some(source) => Json(source).into_response(),
        None => problem(404, "not_found", None),
    }
}

async fn commands(State(suite): State<Arc<Suite>>) -> Response {
    let mut cancel = suite.cancel.subscribe();
    let canceled = tokio::time::timeout(Duration::from_secs(20), cancel.wait_for(|c| *c)).await.is_ok();
    Json(Commands { cancel: canceled }).into_response()
}

async fn secrets(State(suite): State<Arc<Suite>>, headers: HeaderMap) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    if suite.withheld.load(Ordering::SeqCst) {
        return problem(503, "unavailable", None);
    }
    let public = STANDARD.decode(&suite.seen.lock().unwrap().claims[0].public_key).unwrap();
    let ephemeral = PrivateKey::generate(&X25519).unwrap();
    let task = suite.lease.lock().unwrap().task_id.to_string();
    let mut text =
        serde_json::to_vec(&Secrets { variables: suite.secrets.clone(), ..Secrets::default() }).unwrap();
    let key = agree(&ephemeral, UnparsedPublicKey::new(&X25519, public), (), |shared| {
        let prk = Salt::new(HKDF_SHA256, &[]).extract(shared);
        let okm = prk.expand(&[b"gantry task secrets"], &AES_256_GCM).map_err(|_| ())?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    })
    .unwrap();
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key([0; 12]),
        Aad::from(task.as_bytes()),
        &mut text,
    )
    .unwrap();
    let ephemeral = STANDARD.encode(ephemeral.compute_public_key().unwrap().as_ref());
    Json(SealedSecrets { ephemeral, sealed: STANDARD.encode(text) }).into_response()
}

async fn steps(
    State(suite): State<Arc<Suite>>,
    headers: HeaderMap,
    Json(report): Json<StepReport>,
) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    {
        let mut seen = suite.seen.lock().unwrap();
        seen.reports.push((report.number, report.status.clone()));
        seen.steps.insert(report.number, report);
    }
    suite.note();
    Json(serde_json::json!({})).into_response()
}

async fn ssh(
    State(suite): State<Arc<Suite>>,
    headers: HeaderMap,
    Json(session): Json<SshSession>,
) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    suite.seen.lock().unwrap().sessions.push(session);
    suite.note();
    Json(serde_json::json!({})).into_response()
}

/// Places for artifacts, each at a store that is this suite itself.
async fn places(Json(ask): Json<ArtifactUploads>) -> Response {
    let place = |_| {
        let object = TaskId::new().uuid();
        Upload { object, url: format!("/store/{object}"), headers: Vec::new(), in_parts: false }
    };
    Json(Uploads { uploads: ask.files.iter().map(place).collect() }).into_response()
}

async fn store(State(suite): State<Arc<Suite>>, body: Bytes) -> Response {
    let mut seen = suite.seen.lock().unwrap();
    if seen.store_away {
        return problem(503, "unavailable", None);
    }
    seen.stored.push(body);
    StatusCode::OK.into_response()
}

async fn stored() -> Response {
    Json(Committed::Stored).into_response()
}

#[derive(serde::Deserialize)]
struct At {
    offset: u64,
}

async fn chunk(
    State(suite): State<Arc<Suite>>,
    Path((_, step)): Path<(TaskId, StepId)>,
    Query(at): Query<At>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    if headers[CHUNK_CRC].to_str().unwrap() != format!("{:08x}", crc32c::crc32c(&body)) {
        return problem(422, "checksum_mismatch", None);
    }
    let mut ack = ChunkAck { next_offset: 0, limit_reached: false };
    {
        let mut seen = suite.seen.lock().unwrap();
        assert!(seen.steps.values().any(|s| s.step_id == step), "a chunk of a step that was not reported");
        if seen.sealed.contains_key(&step) {
            // Whose answer was lost is sent again, by another agent too; there is never more.
            let from = at.offset as usize;
            let known = seen.streams.get(&step).and_then(|stream| stream.get(from..from + body.len()));
            assert_eq!(known, Some(&body[..]), "other bytes after the seal");
        }
        let (limit, gap) = (seen.stream_limit, seen.gaps > 0);
        if gap {
            // As if the end of what was acknowledged had been lost.
            seen.gaps -= 1;
            let stream = seen.streams.entry(step).or_default();
            stream.truncate(at.offset as usize / 2);
            return problem(409, "offset_gap", Some(stream.len() as u64));
        }
        let stream = seen.streams.entry(step).or_default();
        if at.offset > stream.len() as u64 {
            return problem(409, "offset_gap", Some(stream.len() as u64));
        }
        let known = stream.len() - at.offset as usize;
        if known < body.len() {
            assert_eq!(&stream[at.offset as usize..], &body[..known]);
            stream.extend_from_slice(&body[known..]);
        }
        if let Some(limit) = limit
            && stream.len() > limit
        {
            stream.truncate(limit);
            ack.limit_reached = true;
        }
        ack.next_offset = stream.len() as u64;
    }
    suite.note();
    Json(ack).into_response()
}

async fn seal(
    State(suite): State<Arc<Suite>>,
    Path((_, step)): Path<(TaskId, StepId)>,
    headers: HeaderMap,
    Json(seal): Json<Seal>,
) -> Response {
    if let Err(refused) = check(&suite, &headers) {
        return refused;
    }
    {
        let mut seen = suite.seen.lock().unwrap();
        let stream = seen.streams.entry(step).or_default();
        let digest = hex::encode(Sha256::digest(&*stream));
        if seal.total_bytes != stream.len() as u64 || seal.sha256 != digest {
            return problem(409, "seal_mismatch", Some(0));
        }
        seen.sealed.insert(step, seal);
    }
    suite.note();
    Json(serde_json::json!({})).into_response()
}

/// Waits for something outside of the suite.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
