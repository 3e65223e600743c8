//! Messages between agent and suite, readable three minor versions back. JSON over HTTP/1.1, over a Unix
//! socket on one machine or TLS elsewhere. Every call but the claim carries `Authorization: Bearer <fence>`:
//! the fence token, signed by the dispatcher with task, epoch and expiry (reliability §7).
//!
//! | route | answered by |
//! |---|---|
//! | `POST /v1/claim` [`Claim`] → [`Lease`] | dispatcher |
//! | `POST /api/v3/runner/claim` [`RunnerClaim`] → [`RunnerTask`], or 204 when there is none | dispatcher; of a standing runner, with the token of its class |
//! | `POST /api/v3/runner/unclaim` [`RunnerUnclaim`] | dispatcher; of a standing runner, with the token of the task |
//! | `POST /v1/tasks/{task}/start` → `{}` | dispatcher; the start permit of a claim that carried none (reliability §7). 409 `canceled`: report that at once |
//! | `POST /v1/tasks/{task}/renew` [`Renew`] → [`Renewed`] | dispatcher |
//! | `POST /v1/tasks/{task}/finish` [`FinalReport`] → `{}` | dispatcher |
//! | `GET /v1/tasks/{task}/source` → [`Source`] | dispatcher |
//! | `GET /v1/tasks/{task}/commands?wait_ms=N` → [`Commands`] | dispatcher; answers when there is a command, or after `wait_ms` (at most 25 s) |
//! | `POST /v1/tasks/{task}/ssh` [`SshSession`] → `{}` | dispatcher; kept as an act (security §14) |
//! | `GET /v1/tasks/{task}/secrets` → [`SealedSecrets`] | contexts, role delivery |
//! | `POST /v1/tasks/{task}/oidc` [`MintToken`] → [`MintedToken`] | contexts, role delivery |
//! | `POST /v1/tasks/{task}/steps` [`StepReport`] → `{}` | output-processor |
//! | `GET /v1/tasks/{task}/siblings?step=N` → [`Siblings`] | output-processor |
//! | `PUT /v1/tasks/{task}/streams/{step}/chunks?offset=N` → [`ChunkAck`] | output-processor |
//! | `POST /v1/tasks/{task}/streams/{step}/seal` [`Seal`] → `{}` | output-processor |
//! | `…/stores/…` and `GET /v1/tasks/{task}/{timings,failed-tests}`: [`stores`] | output-processor, test-results |
//!
//! Errors are `{"code", "message"}` ([`Problem`]): 409 `stale_lease` (stop at once), `offset_gap`, `log_conflict`,
//! `stream_sealed`, `seal_mismatch`; 422 `checksum_mismatch`; 429 and 503 are retried.

pub mod stores;

use ids::{ClaimId, InstanceId, JobId, OrgId, PipelineId, ProjectId, StepId, TaskId, Timestamp, WorkflowId};
use model::{plan::JobDefinition, ssh::Access};
use serde::{Deserialize, Serialize};

/// The header that carries the CRC-32C of a chunk, eight lower-case hex digits.
pub const CHUNK_CRC: &str = "chunk-crc32c";
/// Largest chunk in bytes.
pub const MAX_CHUNK: usize = 1 << 20;

/// Asks for the task that a one-time token was made for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Chosen by the agent: a repeat returns the same lease.
    pub claim_id: ClaimId,
    /// New at each start of the agent.
    pub instance_id: InstanceId,
    /// The one-time token.
    pub token: String,
    /// Public half of the task's X25519 key, base64: secrets are sealed to it.
    pub public_key: String,
    /// Version of the agent.
    pub version: String,
}

/// A standing runner asks for a task of its class (execution §25).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunnerClaim {
    /// Its name, unique in the class.
    pub name: String,
    /// Its machine.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// How many tasks it could take now; 0: it only says that it lives.
    pub free: u32,
    /// How long the answer may wait for a task, at most 25 s.
    pub wait_ms: u64,
}

/// A task for a standing runner, which starts an agent with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunnerTask {
    /// Which.
    pub task_id: TaskId,
    /// Its epoch.
    pub epoch: i64,
    /// The agent's one-time token.
    pub token: String,
}

/// `POST /api/v3/runner/unclaim`: gives back a task whose agent could not be started. 400 `invalid`: the token is not of
/// this task; 409 `stale_lease`: it is not the runner's any more; 409 `exhausted`: it was given back too often and ends.
#[derive(Clone, Serialize, Deserialize)]
pub struct RunnerUnclaim {
    /// Which.
    pub task_id: TaskId,
    /// The [`RunnerTask`]'s token.
    pub task_token: String,
}

/// The token stays out of logs.
impl std::fmt::Debug for RunnerUnclaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunnerUnclaim").field("task_id", &self.task_id).finish_non_exhaustive()
    }
}

/// A lease on a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Which.
    pub task_id: TaskId,
    /// Strictly increasing per task.
    pub epoch: i64,
    /// Fence token for every other call.
    pub fence: String,
    /// Whether the start permit is carried: nothing needs to be prepared.
    pub permit: bool,
    /// Durations that both sides derive their deadlines from.
    pub timing: Timing,
    /// When it was granted, by the suite's clock: what the agent says of times is counted from here, because its own
    /// machine's clock may be wrong or jump (reliability F21). `None`: a suite that does not say.
    #[serde(default)]
    pub granted_at: Option<Timestamp>,
    /// What is run.
    pub spec: TaskSpec,
}

/// Durations of a lease in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between renewals; default 10 s.
    pub renew_ms: u64,
    /// After the last successful renewal the agent kills the task; default 150 s.
    pub self_stop_ms: u64,
    /// The lease's length; default 180 s.
    pub lease_ms: u64,
    /// Between SIGTERM and SIGKILL; default 10 s.
    pub grace_ms: u64,
    /// Longest run of a job; default 5 h.
    pub job_timeout_ms: u64,
    /// Bytes of spool on disk before the step's pipe blocks; default 256 MiB.
    pub spool_bytes: u64,
    /// How long a job that can be entered stays after its steps without a session; default 10 min.
    #[serde(default = "ssh_idle_ms")]
    pub ssh_idle_ms: u64,
    /// The same, in all; default 2 h.
    #[serde(default = "ssh_total_ms")]
    pub ssh_total_ms: u64,
}

const fn ssh_idle_ms() -> u64 {
    10 * 60 * 1000
}

const fn ssh_total_ms() -> u64 {
    2 * 3600 * 1000
}

/// What an agent runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Job.
    pub job_id: JobId,
    /// Compiled job name.
    pub job_name: String,
    /// Job number.
    pub job_number: i64,
    /// The job number before it on the branch; never told to self-hosted runners (execution §11.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_number: Option<i64>,
    /// Page of the job.
    pub job_url: String,
    /// Workflow.
    pub workflow_id: WorkflowId,
    /// Original workflow instance.
    pub workspace_id: WorkflowId,
    /// Pipeline.
    pub pipeline_id: PipelineId,
    /// Number of the pipeline.
    pub pipeline_number: i64,
    /// Organisation.
    pub org_id: OrgId,
    /// Name of the organisation.
    pub org: String,
    /// Project.
    pub project_id: ProjectId,
    /// Name of the repository.
    pub repo: String,
    /// Commit.
    pub revision: String,
    /// Branch, on branch pipelines.
    pub branch: Option<String>,
    /// Tag, on tag pipelines.
    pub tag: Option<String>,
    /// Login of who triggered, if known.
    pub username: Option<String>,
    /// Clone URL as `CIRCLE_REPOSITORY_URL` shows it.
    pub repository_url: String,
    /// Upstream jobs.
    pub upstream: Vec<JobId>,
    /// Parallel index.
    pub index: u32,
    /// Parallel count.
    pub total: u32,
    /// Whether the job has contexts or project variables to ask for.
    pub has_secrets: bool,
    /// The job.
    pub definition: JobDefinition,
    /// Whether the containers that the job asks for are made. Else it runs on the machine, whatever it asks for.
    #[serde(default)]
    pub containers: bool,
    /// What its resource class means.
    #[serde(default)]
    pub resources: Resources,
    /// Whether only the failed tests of the job before are to be run: asked for at `failed-tests` ([`stores`]).
    #[serde(default)]
    pub failed_tests: bool,
    /// Of a rerun with SSH: who may enter the job.
    #[serde(default)]
    pub ssh: Option<Access>,
}

/// What a resource class means (config-language §11.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Its name.
    pub class: String,
    /// Thousandths of a processor; `None`: no limit.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory; `None`: no limit.
    pub memory_bytes: Option<u64>,
}

/// Renews a lease.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Renew {}

/// A renewed lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renewed {
    /// New fence token.
    pub fence: String,
    /// Whether the task is to stop: canceled.
    pub cancel: bool,
}

/// What the dispatcher wants of the agent between two renewals: a long poll, so that a cancel arrives at once
/// . A poll that ends without a command is repeated; 409 `stale_lease` means stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Whether the task is to stop: canceled.
    pub cancel: bool,
}

/// `POST /v1/placement`: an agent that was started with an identity and no token asks for its token. 403 `unauthorized`: the
/// identity is not accepted; 409 `stale_placement`: it has nothing to do.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identify {
    /// What compute gave it: for Nomad the identity of its workload, a JWT.
    pub proof: String,
}

/// The proof stays out of logs.
impl std::fmt::Debug for Identify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identify").finish_non_exhaustive()
    }
}

/// The answer to [`Identify`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Identified {
    /// One-time token to claim with.
    pub token: String,
}

/// Environment variable with the [`LaunchFile`] of an agent that was started with an identity: without its token, and so
/// without anything secret.
pub const LAUNCH_VARIABLE: &str = "GANTRY_LAUNCH";

/// Name of the [`LaunchFile`] in a task's folder.
pub const LAUNCH_FILE: &str = "claim.json";

/// Name of the file in a task's folder that says which process its agent is, by the line of its `/proc/<pid>/stat`. The
/// agent holds a lock on it as long as it lives.
pub const PID_FILE: &str = "pid";

/// What compute leaves for an agent in its task folder (mode 0600) before it starts it as
/// `gantry-runner --task-dir <folder>`. Secrets travel here and never in arguments or environment, which
/// other processes can read. The agent keeps its own state (spool, final report) in the same folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchFile {
    /// Where the suite listens: `unix:/path/agent.sock`, or a base URL. The path of a socket is stable across
    /// restarts of the server, or a link that the server renews.
    pub endpoint: String,
    /// One-time token to claim with; empty: the agent asks for it with its identity, or waits for it as a line on its standard
    /// input.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// What keeps steps from the server's files: `user` (steps run as [`Self::job_user`]), `namespace` (user,
    /// mount and PID namespaces without [`Self::hide`]) or `none`.
    pub isolation: String,
    /// As whom steps run, with isolation `user`.
    #[serde(default)]
    pub job_user: Option<JobUser>,
    /// Absolute folders that steps must not see.
    #[serde(default)]
    pub hide: Vec<String>,
    /// The container engine for jobs that ask for containers, if this machine has one.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// The cgroup (v2) folder made for this task, if one could be made: steps go below it, and `cgroup.kill`
    /// there ends them all.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Where jobs that are rerun with SSH are entered; `None`: they are not. Nothing listens for other jobs.
    #[serde(default)]
    pub ssh: Option<SshListen>,
    /// Longest run of a task on this machine in milliseconds, where its owner allows less than the job's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_run_ms: Option<u64>,
}

/// Where an agent listens for SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshListen {
    /// Address of the machine to listen on.
    pub address: String,
    /// The host that people are told; empty: the address, or the machine's name where that is every address.
    pub advertise: String,
    /// The first port that may be taken.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
}

/// A container engine and what tasks get from it (security §8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Path of its Unix socket.
    pub socket: String,
    /// When the registry is asked: `always`, `missing` or `never`.
    pub pull: String,
    /// Most processes and threads of a container.
    pub pids: i64,
    /// Whether programs may not gain rights by being started.
    pub no_new_privileges: bool,
    /// Name of the containers' network.
    pub network: String,
    /// Image of the engine that a job may have for itself, in a privileged container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_docker_image: Option<String>,
}

/// Name of the file in a task's folder that says that the task has made containers, so that a sweep must ask the
/// engine too.
pub const CONTAINERS_FILE: &str = "containers";

/// A user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Where the repository is now (the server's port may have changed).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// URL without credentials.
    pub url: String,
    /// User name for basic authentication.
    pub username: String,
    /// Password: a token that reads this repository until the lease ends.
    pub password: String,
}

/// Secrets sealed to the task's key: X25519 with an ephemeral key, HKDF-SHA-256 (info `gantry task secrets`),
/// AES-256-GCM with a zero nonce and the task's id as associated data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedSecrets {
    /// Ephemeral public key, base64.
    pub ephemeral: String,
    /// Ciphertext with tag, base64. Plain text is the JSON of [`Secrets`].
    pub sealed: String,
}

/// What a task gets that nobody else may see.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Secrets {
    /// Environment from contexts and project variables, name and value, lowest precedence first.
    pub variables: Vec<(String, String)>,
    /// The keys that the job's `add_ssh_keys` steps ask for, as far as the project has them.
    #[serde(default)]
    pub ssh_keys: Vec<SshKey>,
    /// The key that fetches the repository, of a job that checks out.
    #[serde(default)]
    pub checkout_key: Option<SshKey>,
}

/// A private SSH key of the project.
#[derive(Clone, Serialize, Deserialize)]
pub struct SshKey {
    /// The host that it is for; `None`: any.
    pub hostname: Option<String>,
    /// MD5 of the public half: `aa:bb:…`.
    pub md5: String,
    /// SHA-256 of the public half: `SHA256:…`.
    pub sha256: String,
    /// The public half in OpenSSH's one-line form.
    pub public_key: String,
    /// The private half in OpenSSH's format.
    pub private_key: String,
}

/// Asks for an OIDC token of the job (execution §21).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MintToken {
    /// Whom it is for; empty: the organisation.
    #[serde(default)]
    pub audience: Vec<String>,
    /// Whether the issuer is the installation instead of the organisation.
    #[serde(default)]
    pub root_issuer: bool,
}

/// A minted token.
#[derive(Clone, Serialize, Deserialize)]
pub struct MintedToken {
    /// The JWT.
    pub token: String,
}

/// A step began or ended. Repeats are harmless.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Its id, chosen by the agent.
    pub step_id: StepId,
    /// 0, 99, 101… (execution §10).
    pub number: u32,
    /// Shown name.
    pub name: String,
    /// `running`, `success`, `failed`, `canceled`, `timedout`, `infrastructure_fail`.
    pub status: String,
    /// Shell line, newline, script.
    pub bash_command: Option<String>,
    /// Exit code, once ended.
    pub exit_code: Option<i32>,
    /// Whether it was started and left.
    pub background: bool,
    /// A claim of the agent, counted from when its lease was granted.
    pub started_at: Timestamp,
    /// The same.
    pub ended_at: Option<Timestamp>,
}

/// How far the other tasks of the job are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Siblings {
    /// How many came to the step, with all before it successful.
    pub arrived: u32,
    /// How many failed before it.
    pub failed: u32,
}

/// Answer to a chunk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkAck {
    /// All bytes below are stored.
    pub next_offset: u64,
    /// The size limit was hit: send no more.
    #[serde(default)]
    pub limit_reached: bool,
}

/// Seals a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// Bytes in all.
    pub total_bytes: u64,
    /// SHA-256 of them, hex.
    pub sha256: String,
    /// Bytes that the step produced, when more than stored.
    pub produced_bytes: u64,
}

/// The end of a task, kept on disk until acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinalReport {
    /// `success`, `failed`, `canceled`, `timedout` or `infrastructure_fail`.
    pub status: model::status::JobStatus,
    /// Why, where the status alone does not say it.
    pub reason: Option<String>,
    /// Whether the steps had come to their end when the task was stopped: it stayed for SSH, and a cancel from then on
    /// ends that alone (execution §26).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
}

/// Somebody entered a job by SSH, or left it. What they did there is not told. A repeat is recorded again: the session's
/// id tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshSession {
    /// Chosen by the agent.
    pub session_id: InstanceId,
    /// Whether it began or ended.
    pub open: bool,
    /// Fingerprint of the key that was shown, `SHA256:…`.
    pub key: String,
    /// Address and port of the other side.
    pub from: String,
}

/// An error answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Of `offset_gap` and `seal_mismatch`: where to go on.
    #[serde(default)]
    pub next_offset: Option<u64>,
}
