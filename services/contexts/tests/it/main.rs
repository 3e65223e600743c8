//! Secrets from the request that sets them to the agent that opens them.

mod oidc;
mod restrictions;
mod ssh_keys;

use agent_api::{Problem, SealedSecrets, Secrets as Opened};
use aws_lc_rs::{aead, agreement, hkdf};
use axum::{body::Body, http};
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use bus::Bus;
use contracts::{
    Actor, NewEvent, RequestError,
    conductor::{JobEnded, JobReady},
    contexts::*,
    domain::Project,
    permissions::RoleGranted,
    pipelines::{Trigger, Vcs},
};
use eventstore::{NO_MIGRATIONS, Store};
use gantry_contexts as contexts;
use http_body_util::BodyExt;
use ids::*;
use kit::keys::{FenceClaims, Keys};
use live::{LocalLive, Quota};
use model::{
    plan::{Executor, JobDefinition, Step},
    status::JobStatus,
};
use secrets::{Keyring, Secrets};
use std::sync::Arc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

struct Suite {
    db: testkit::TestDb,
    bus: Bus,
    conductor: Store,
    permissions: Store,
    ring: Arc<Keyring>,
    keys: Keys,
    service: contexts::Service,
    user: Actor,
    _folder: tempfile::TempDir,
    _stop: DropGuard,
}

#[tokio::test]
async fn after_a_rotation_values_are_sealed_anew_by_themselves() {
    let suite = suite().await;
    let project = project();
    suite.set(Scope::Project(project.id), "A", "value").await.unwrap();
    let newest = suite.ring.rotate().await.unwrap();
    // As another process does that starts, or each once an hour.
    let deps = suite.deps();
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    contexts::start(deps, stop).await.unwrap();
    for _ in 0..500 {
        let old: i64 = sqlx::query_scalar("SELECT count(*) FROM contexts.variables WHERE key_version < $1")
            .bind(i64::from(newest))
            .fetch_one(&suite.db.pool)
            .await
            .unwrap();
        if old == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("values stay under the old key");
}

async fn suite() -> Suite {
    let db = testkit::postgres().await;
    let bus = Bus::local(db.pool.clone());
    let folder = tempfile::tempdir().unwrap();
    let ring = Arc::new(Keyring::open_or_create(folder.path().join("ring")).unwrap());
    let keys = Keys::from_bytes([7; 32]);
    let stop = CancellationToken::new();
    let conductor = Store::open(db.pool.clone(), "conductor", &NO_MIGRATIONS).await.unwrap();
    let permissions = Store::open(db.pool.clone(), "permissions", &NO_MIGRATIONS).await.unwrap();
    bus.register_source(&conductor);
    bus.register_source(&permissions);
    let deps = contexts::Deps {
        pool: db.pool.clone(),
        bus: bus.clone(),
        secrets: ring.clone(),
        keys: keys.clone(),
        public_url: "https://ci.example/".into(),
        live: Arc::new(LocalLive::new()),
        deliveries: None,
        refuse_unmaskable: false,
    };
    let service = contexts::start(deps, stop.clone()).await.unwrap();
    let user = Actor::User { id: UserId::new() };
    Suite {
        db,
        bus,
        conductor,
        permissions,
        ring,
        keys,
        service,
        user,
        _folder: folder,
        _stop: stop.drop_guard(),
    }
}

impl Suite {
    /// What another process of the service has.
    fn deps(&self) -> contexts::Deps {
        contexts::Deps {
            pool: self.db.pool.clone(),
            bus: self.bus.clone(),
            secrets: self.ring.clone(),
            keys: self.keys.clone(),
            public_url: "https://ci.example/".into(),
            live: Arc::new(LocalLive::new()),
            deliveries: None,
            refuse_unmaskable: false,
        }
    }

    async fn set(&self, scope: Scope, name: &str, value: &str) -> Result<VariableInfo, RequestError> {
        let sealed = B64.encode(self.ring.encrypt(contexts::REQUEST_LABEL, value.as_bytes()).await.unwrap());
        self.bus.ask(&self.user, &SetVariable { scope, name: name.into(), sealed }).await
    }

    async fn context(&self, org_id: OrgId, name: &str) -> ContextInfo {
        self.bus.ask(&self.user, &CreateContext { org_id, name: name.into() }).await.unwrap()
    }

    async fn grant(&self, user_id: UserId, role: &str) {
        let mut tx = self.permissions.begin(&[]).await.unwrap();
        let body = RoleGranted { user_id, org_id: None, role: role.into() };
        tx.append(&[NewEvent::new("grant", user_id.uuid(), self.user.clone(), &body)]).await.unwrap();
        tx.commit().await.unwrap();
        for _ in 0..500 {
            let there: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT FROM contexts.grants WHERE user_id = $1)")
                    .bind(user_id.uuid())
                    .fetch_one(&self.db.pool)
                    .await
                    .unwrap();
            if there {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the grant did not arrive");
    }

    async fn ready(&self, project: &Project, contexts: &[&str], acting_user: Option<UserId>) -> JobId {
        self.ready_with(project, contexts, acting_user, Vec::new()).await
    }

    async fn ready_with(
        &self,
        project: &Project,
        contexts: &[&str],
        acting_user: Option<UserId>,
        steps: Vec<Step>,
    ) -> JobId {
        let (job_id, workflow_id) = (JobId::new(), WorkflowId::new());
        let body = JobReady {
            job_id,
            workflow_id,
            workflow_name: "main".into(),
            workspace_id: workflow_id,
            pipeline_id: PipelineId::new(),
            pipeline_number: 1,
            project: project.clone(),
            name: "build".into(),
            number: 1,
            previous_number: None,
            vcs: Vcs { revision: "0".repeat(40), branch: Some("main".into()), tag: None },
            trigger: Trigger {
                kind: "api".into(),
                actor: None,
                actor_login: None,
                received_at: chrono::Utc::now(),
            },
            upstream: Vec::new(),
            contexts: contexts.iter().map(|&name| name.to_owned()).collect(),
            acting_user,
            failed_tests_of: None,
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
        };
        let mut tx = self.conductor.begin(&[]).await.unwrap();
        tx.append(&[NewEvent::new("workflow", workflow_id.uuid(), self.user.clone(), &body)]).await.unwrap();
        tx.commit().await.unwrap();
        job_id
    }

    async fn get(&self, task: TaskId, fence: &str) -> (http::StatusCode, Vec<u8>) {
        let request = http::Request::get(format!("/v1/tasks/{task}/secrets"))
            .header("authorization", format!("Bearer {fence}"))
            .body(Body::empty())
            .unwrap();
        let response = self.service.agent_router().oneshot(request).await.unwrap();
        (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }
}

/// An agent with its lease.
struct Task {
    id: TaskId,
    key: agreement::PrivateKey,
    claims: FenceClaims,
}

impl Task {
    fn of(job_id: JobId) -> Self {
        let key = agreement::PrivateKey::generate(&agreement::X25519).unwrap();
        let public_key = Some(B64.encode(key.compute_public_key().unwrap().as_ref()));
        let id = TaskId::new();
        let expires_at = chrono::Utc::now().timestamp_millis() + 60_000;
        Self {
            id,
            key,
            claims: FenceClaims { task_id: id, job_id, epoch: 1, expires_at, public_key, trace: None },
        }
    }

    fn fence(&self, suite: &Suite) -> String {
        suite.keys.seal_claims("fence", &self.claims)
    }

    /// The variables that people set.
    fn open(&self, body: &[u8]) -> Vec<(String, String)> {
        let variables = self.opened(body).variables;
        variables.into_iter().filter(|(name, _)| !name.starts_with("CIRCLE_OIDC_TOKEN")).collect()
    }

    fn opened(&self, body: &[u8]) -> Opened {
        let sealed: SealedSecrets = serde_json::from_slice(body).unwrap();
        let peer =
            agreement::UnparsedPublicKey::new(&agreement::X25519, B64.decode(sealed.ephemeral).unwrap());
        let key = agreement::agree(&self.key, peer, (), |shared| {
            let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(shared);
            let okm = prk.expand(&[b"gantry task secrets"], &aead::AES_256_GCM).map_err(|_| ())?;
            Ok(aead::LessSafeKey::new(aead::UnboundKey::from(okm)))
        })
        .unwrap();
        let mut plain = B64.decode(sealed.sealed).unwrap();
        let nonce = aead::Nonce::assume_unique_for_key([0; 12]);
        let plain = key.open_in_place(nonce, aead::Aad::from(self.id.to_string()), &mut plain).unwrap();
        serde_json::from_slice(plain).unwrap()
    }
}

fn project() -> Project {
    Project {
        id: ProjectId::new(),
        org_id: OrgId::new(),
        org: "local".into(),
        name: "demo".into(),
        slug: "git/local/demo".into(),
        default_branch: "main".into(),
    }
}

fn problem(body: &[u8]) -> String {
    serde_json::from_slice::<Problem>(body).unwrap().code
}

fn refused(error: RequestError) -> String {
    match error {
        RequestError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn contexts_and_variables_come_and_go() {
    let suite = suite().await;
    let org = OrgId::new();
    let deploy = suite.context(org, "deploy").await;
    suite.context(org, "aws").await;
    let again = suite.bus.ask(&suite.user, &CreateContext { org_id: org, name: "deploy".into() }).await;
    assert_eq!(refused(again.unwrap_err()), "exists");
    suite.context(OrgId::new(), "deploy").await;
    let names = suite.bus.ask(&suite.user, &ListContexts { org_id: org }).await.unwrap();
    assert_eq!(names.iter().map(|context| &*context.name).collect::<Vec<_>>(), ["aws", "deploy"]);
    assert_eq!(suite.bus.ask(&suite.user, &GetContext { id: deploy.id }).await.unwrap(), deploy);

    let scope = Scope::Context(deploy.id);
    let first = suite.set(scope.clone(), "TOKEN", "first-value").await.unwrap();
    let second = suite.set(scope.clone(), "TOKEN", "second-value").await.unwrap();
    assert_eq!(first.created_at, second.created_at);
    assert!(first.updated_at < second.updated_at);
    assert_ne!(first.masked, second.masked, "a change shows");
    assert_eq!((first.version, second.version), (1, 2));
    assert_eq!((second.updated_by, second.last_used_at), (suite.user.user(), None));
    assert!(first.masked.starts_with("xxxx") && first.masked.len() == 8, "{}", first.masked);
    assert_eq!(suite.bus.ask(&suite.user, &ListVariables { scope: scope.clone() }).await.unwrap(), [second]);

    for (name, value, code) in [
        ("1X", "v", "invalid"),
        ("A-B", "v", "invalid"),
        ("", "v", "invalid"),
        ("LD_PRELOAD", "v", "reserved_name"),
        ("CIRCLE_TAG", "v", "reserved_name"),
        ("A", "", "invalid"),
        ("A", &"x".repeat(32 * 1024 + 1), "invalid"),
    ] {
        assert_eq!(refused(suite.set(scope.clone(), name, value).await.unwrap_err()), code, "{name}");
    }
    let plain = SetVariable { scope: scope.clone(), name: "A".into(), sealed: B64.encode("plain") };
    assert_eq!(refused(suite.bus.ask(&suite.user, &plain).await.unwrap_err()), "invalid");
    let nowhere = suite.set(Scope::Context(ContextId::new()), "A", "v").await;
    assert_eq!(refused(nowhere.unwrap_err()), "not_found");

    let stored: Vec<u8> =
        sqlx::query_scalar("SELECT sealed FROM contexts.variables").fetch_one(&suite.db.pool).await.unwrap();
    assert!(!stored.windows(6).any(|part| part == b"second"));
    let everything: String = sqlx::query_scalar(
        "SELECT coalesce((SELECT string_agg(body::text, '') FROM contexts.events), '')
             || coalesce((SELECT string_agg(answer::text, '') FROM contexts.idempotency), '')",
    )
    .fetch_one(&suite.db.pool)
    .await
    .unwrap();
    assert!(!everything.contains("-value"), "{everything}");

    let remove = RemoveVariable { scope: scope.clone(), name: "TOKEN".into() };
    suite.bus.ask(&suite.user, &remove).await.unwrap();
    assert_eq!(refused(suite.bus.ask(&suite.user, &remove).await.unwrap_err()), "not_found");
    suite.set(scope.clone(), "TOKEN", "third").await.unwrap();
    suite.bus.ask(&suite.user, &DeleteContext { id: deploy.id }).await.unwrap();
    assert_eq!(
        refused(suite.bus.ask(&suite.user, &GetContext { id: deploy.id }).await.unwrap_err()),
        "not_found"
    );
    assert_eq!(refused(suite.bus.ask(&suite.user, &ListVariables { scope }).await.unwrap_err()), "not_found");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM contexts.variables")
        .fetch_one(&suite.db.pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_lease_holder_gets_its_variables_in_order_of_precedence() {
    let suite = suite().await;
    let project = project();
    let user = UserId::new();
    suite.grant(user, "contributor").await;
    let (a, b) = (suite.context(project.org_id, "a").await, suite.context(project.org_id, "b").await);
    suite.set(Scope::Project(project.id), "X", "project").await.unwrap();
    suite.set(Scope::Project(project.id), "P", "project").await.unwrap();
    suite.set(Scope::Context(a.id), "X", "a").await.unwrap();
    suite.set(Scope::Context(b.id), "X", "b").await.unwrap();

    // At once: the delivery waits for the news of the job.
    let task = Task::of(suite.ready(&project, &["b", "a"], Some(user)).await);
    let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let expected = [("P", "project"), ("X", "project"), ("X", "b"), ("X", "a")];
    assert_eq!(task.open(&body), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    // When they were used last is noted to the hour, and not written again before.
    let used = async |scope: Scope| {
        let all = suite.bus.ask(&suite.user, &ListVariables { scope }).await.unwrap();
        all.into_iter().map(|variable| variable.last_used_at.unwrap()).max().unwrap()
    };
    let first = used(Scope::Context(a.id)).await;

    let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!((status.as_u16(), task.open(&body).len()), (200, 4), "a repeat soon after is answered");
    assert_eq!(used(Scope::Context(a.id)).await, first);
    sqlx::query("UPDATE contexts.variables SET last_used_at = last_used_at - interval '61 min'")
        .execute(&suite.db.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE contexts.deliveries SET first_at = now() - interval '61 s'")
        .execute(&suite.db.pool)
        .await
        .unwrap();
    let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (409, "secrets_already_delivered"));

    // A rotation while jobs run: nothing is missed, and the old key can go.
    // Four values, and the two keys of OIDC tokens.
    suite.oidc_keys(2).await;
    let newest = suite.ring.rotate().await.unwrap();
    assert_eq!(suite.service.rewrap().await.unwrap(), 6);
    assert_eq!(suite.service.rewrap().await.unwrap(), 0);
    suite.ring.retire_below(newest).await.unwrap();
    let task = Task::of(suite.ready(&project, &["a"], Some(user)).await);
    let (_, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!(task.open(&body).last().unwrap().1, "a");
    assert!(used(Scope::Project(project.id)).await >= first);

    let acts: Vec<String> =
        sqlx::query_scalar("SELECT detail::text FROM contexts.acts WHERE kind = 'context.secrets.accessed'")
            .fetch_all(&suite.db.pool)
            .await
            .unwrap();
    assert_eq!(acts.len(), 3);
    assert!(acts[0].contains("\"X\""), "{}", acts[0]);

    let job = suite.ready(&self::project(), &[], None).await;
    let task = Task::of(job);
    let (_, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!(task.open(&body), [], "nothing to deliver is an answer");

    let ended = JobEnded {
        job_id: job,
        status: JobStatus::Success,
        reason: None,
        approved_by: None,
        at: chrono::Utc::now(),
    };
    let mut tx = suite.conductor.begin(&[]).await.unwrap();
    tx.append(&[NewEvent::new("workflow", WorkflowId::new().uuid(), suite.user.clone(), &ended)])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let forgotten = async {
        let known = "SELECT EXISTS (SELECT FROM contexts.jobs WHERE job_id = $1)
                         OR EXISTS (SELECT FROM contexts.deliveries WHERE job_id = $1)";
        while sqlx::query_scalar(known).bind(job.uuid()).fetch_one(&suite.db.pool).await.unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), forgotten)
        .await
        .expect("an ended job is forgotten");
}

#[tokio::test]
async fn secrets_of_an_organisation_are_opened_only_so_fast() {
    let mut suite = suite().await;
    let (one, other) = (project(), project());
    for project in [&one, &other] {
        suite.set(Scope::Project(project.id), "A", "value").await.unwrap();
    }
    let quota = Quota { burst: 2, per_second: 0.0 };
    let deps = contexts::Deps { deliveries: Some(quota), ..suite.deps() };
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    suite.service = contexts::start(deps, stop).await.unwrap();
    for allowed in [true, true, false] {
        let task = Task::of(suite.ready(&one, &[], None).await);
        let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
        match allowed {
            true => assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body)),
            false => assert_eq!((status.as_u16(), &*problem(&body)), (429, "rate_limited")),
        }
    }
    let task = Task::of(suite.ready(&other, &[], None).await);
    assert_eq!(suite.get(task.id, &task.fence(&suite)).await.0, 200, "another organisation");
}

#[tokio::test]
async fn a_context_takes_no_value_that_cannot_be_masked_where_that_is_wanted() {
    let mut suite = suite().await;
    let project = project();
    let context = suite.context(project.org_id, "a").await.id;
    suite.set(Scope::Context(context), "BEFORE", "yes").await.unwrap();
    let deps = contexts::Deps { refuse_unmaskable: true, ..suite.deps() };
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    suite.bus = deps.bus.clone();
    suite.service = contexts::start(deps, stop).await.unwrap();
    for value in ["yes", "abc"] {
        let refused = suite.set(Scope::Context(context), "SHORT", value).await.unwrap_err();
        assert!(
            matches!(&refused, RequestError::Refused(why) if why.code == "value_too_short_to_mask"),
            "{refused}"
        );
    }
    suite.set(Scope::Context(context), "LONG", "abcd").await.unwrap();
    suite.set(Scope::Project(project.id), "SHORT", "yes").await.unwrap();
}

#[tokio::test]
async fn who_is_not_the_holder_gets_nothing() {
    let suite = suite().await;
    let project = project();
    let viewer = UserId::new();
    suite.grant(viewer, "viewer").await;
    suite.context(project.org_id, "a").await;

    let mut task = Task::of(suite.ready(&project, &["a"], Some(viewer)).await);
    let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (403, "context_unauthorized"));

    let other = Task::of(suite.ready(&project, &["a", "missing"], None).await);
    let (status, body) = suite.get(other.id, &other.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (403, "context_not_found"));
    assert!(String::from_utf8_lossy(&body).contains("Context missing not found"));

    let (status, body) = suite.get(other.id, &task.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (409, "stale_lease"), "another task's fence");
    task.claims.expires_at = chrono::Utc::now().timestamp_millis() - 1000;
    let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
    assert_eq!(
        (status.as_u16(), &*problem(&body)),
        (401, "fence_expired"),
        "it may have been renewed meanwhile"
    );
    let forged = Keys::from_bytes([8; 32]).seal_claims("fence", &other.claims);
    for token in [&*forged, "", "x.y"] {
        assert_eq!(suite.get(other.id, token).await.0, 401);
    }

    let mut keyless = Task::of(suite.ready(&project, &[], None).await);
    keyless.claims.public_key = None;
    let (status, body) = suite.get(keyless.id, &keyless.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (403, "no_task_key"));
    keyless.claims.public_key = Some("AAAA".into());
    let (status, body) = suite.get(keyless.id, &keyless.fence(&suite)).await;
    assert_eq!((status.as_u16(), &*problem(&body)), (403, "bad_task_key"));

    let denied: i64 =
        sqlx::query_scalar("SELECT count(*) FROM contexts.acts WHERE kind = 'context.secrets.denied'")
            .fetch_one(&suite.db.pool)
            .await
            .unwrap();
    assert_eq!(denied, 3);
}
