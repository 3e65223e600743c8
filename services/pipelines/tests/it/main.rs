//! From a commit in a bare repository to a pipeline.

mod registry;
mod retention;
mod rules;
mod setup;

use blobs::{Blobs, FsBlobs, Key};
use bus::{AskOptions, Bus};
use contracts::{
    Actor, Envelope, NewEvent, RequestError,
    delivery::{Decision, DeliveryReceived, GetDecision, GitRef},
    domain::Project,
    pipelines::*,
    text::Text,
};
use eventstore::{NO_MIGRATIONS, Position, Store, read_after};
use gantry_pipelines as pipelines;
use ids::*;
use serde_json::{Map, json};
use std::{path::Path, process::Command, sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};
use vcs::Git;

const GOOD: &str = "
version: 2.1
jobs:
  build:
    machine: true
    steps:
      - run: echo pipeline << pipeline.number >> of << pipeline.project.git_url >>
workflows:
  main:
    jobs: [build]
";

struct Suite {
    db: testkit::TestDb,
    bus: Bus,
    api: Store,
    blobs: Arc<dyn Blobs>,
    project: Project,
    folder: tempfile::TempDir,
    _stop: DropGuard,
}

async fn suite() -> Suite {
    suite_with(pipelines::Retention::default()).await
}

async fn suite_with(retention: pipelines::Retention) -> Suite {
    let db = testkit::postgres().await;
    let bus = Bus::local(db.pool.clone());
    let folder = tempfile::tempdir().unwrap();
    let git_root = folder.path().join("git");
    Git::new(&git_root).repository("local", "demo").unwrap().init("main").await.unwrap();
    std::fs::create_dir_all(folder.path().join("work/.circleci")).unwrap();
    sh(&folder.path().join("work"), "git init -q -b main .");
    let blobs: Arc<dyn Blobs> =
        Arc::new(FsBlobs::open(&folder.path().join("blobs"), &["key"]).await.unwrap());
    let api = Store::open(db.pool.clone(), "api", &NO_MIGRATIONS).await.unwrap();
    bus.register_source(&api);
    let stop = CancellationToken::new();
    let deps = pipelines::Deps {
        pool: db.pool.clone(),
        bus: bus.clone(),
        blobs: blobs.clone(),
        git_root,
        git_url: "http://gantry.test/".into(),
        retention,
    };
    pipelines::start(deps, stop.clone()).await.unwrap();
    let project = Project {
        id: ProjectId::new(),
        org_id: OrgId::new(),
        org: "local".into(),
        name: "demo".into(),
        slug: "git/local/demo".into(),
        default_branch: "main".into(),
    };
    Suite { db, bus, api, blobs, project, folder, _stop: stop.drop_guard() }
}

fn sh(dir: &Path, script: &str) -> String {
    let out = Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.org")])
        .envs([("GIT_COMMITTER_NAME", "Ada"), ("GIT_COMMITTER_EMAIL", "ada@example.org")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

impl Suite {
    /// Commits the configuration and pushes it; answer: the commit.
    fn push(&self, config: Option<&str>) -> String {
        let work = self.folder.path().join("work");
        let file = work.join(".circleci/config.yml");
        match config {
            Some(text) => std::fs::write(file, text).unwrap(),
            None => {
                let _ = std::fs::remove_file(file);
            }
        }
        let bare = self.folder.path().join("git/local/demo.git");
        let push = format!("git push -q -f {} HEAD:main HEAD:refs/heads/feature/x", bare.display());
        sh(
            &work,
            &format!(
                "git add -A && git commit -q --allow-empty -m 'Say hello' && {push} && git rev-parse HEAD"
            ),
        )
    }

    async fn deliver(&self, revision: &str, skip: bool) -> DeliveryId {
        let delivery_id = DeliveryId::new();
        let body = DeliveryReceived {
            delivery_id,
            project: self.project.clone(),
            reference: GitRef::Branch("main".into()),
            before: None,
            revision: revision.to_owned(),
            skip,
            no_pipeline: false,
        };
        let event = NewEvent::new("delivery", delivery_id.uuid(), user(), &body).with_personal(
            json!({"subject": "Say hello", "message": "Say hello", "author": "Ada", "pusher": "ada"}),
        );
        let mut tx = self.api.begin(&[]).await.unwrap();
        tx.append(&[event]).await.unwrap();
        tx.commit().await.unwrap();
        delivery_id
    }

    async fn decision(&self, delivery_id: DeliveryId) -> Decision {
        let ask = GetDecision { delivery_id, wait_ms: 20_000 };
        let options = AskOptions { deadline: Duration::from_secs(25), ..AskOptions::default() };
        self.bus.ask_with(options, &user(), &ask).await.unwrap()
    }

    async fn pipeline(&self, delivery_id: DeliveryId) -> PipelineView {
        match self.decision(delivery_id).await {
            Decision::Pipeline { id, .. } => self.bus.ask(&user(), &GetPipeline { id }).await.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn created(&self) -> Vec<(Envelope, PipelineCreated)> {
        // Transactions of other databases hold the end of the log back too.
        let settled = async {
            loop {
                let page =
                    read_after(&self.db.pool, pipelines::NAME, Position::default(), 1000).await.unwrap();
                if !page.unsettled {
                    return page;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let page = tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
        let events = page.events.into_iter().map(|(_, event)| event);
        let ours = events.filter(|event| event.kind.starts_with("pipeline."));
        ours.map(|event| (event.clone(), event.body_as().unwrap())).collect()
    }

    fn ask(&self) -> TriggerPipeline {
        TriggerPipeline {
            project: self.project.clone(),
            branch: None,
            tag: None,
            parameters: Map::new(),
            actor_login: Some("ada".into()),
        }
    }
}

fn user() -> Actor {
    Actor::service("test")
}

fn inline(text: Text) -> String {
    match text {
        Text::Inline(text) => text,
        Text::Blob { blob } => panic!("{blob} is not inline"),
    }
}

fn refused(error: RequestError) -> (String, String) {
    match error {
        RequestError::Refused(refusal) => (refusal.code, refusal.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_push_becomes_a_pipeline() {
    let suite = suite().await;
    let revision = suite.push(Some(GOOD));
    let view = suite.pipeline(suite.deliver(&revision, false).await).await;
    assert_eq!((view.number, &*view.state, view.subject.as_deref()), (1, "created", Some("Say hello")));
    assert_eq!(view.vcs, Vcs { revision, branch: Some("main".into()), tag: None });

    let (envelope, event) = suite.created().await.remove(0);
    assert_eq!((event.pipeline_id, event.number, &*event.trigger.kind), (view.id, 1, "webhook"));
    assert_eq!(event.trigger.actor_login.as_deref(), Some("ada"));
    assert_eq!(envelope.correlation_id, Some(view.id));
    assert_eq!(envelope.personal, Some(json!({"subject": "Say hello"})));
    assert!(!envelope.body.to_string().contains("Say hello"), "people's text rides apart");
    let plan = event.plan.unwrap();
    assert_eq!(plan.workflows[0].jobs[0].name, "build");
    assert!(
        serde_json::to_string(&plan).unwrap().contains("echo pipeline 1"),
        "the number is known to the compiler"
    );

    let config = suite.bus.ask(&user(), &GetPipelineConfig { id: view.id }).await.unwrap();
    assert_eq!(config.source, Text::from(GOOD));
    let compiled = inline(config.compiled);
    assert!(compiled.contains("echo pipeline 1"), "{compiled}");
    assert!(compiled.contains("http://gantry.test/git/local/demo.git"), "{compiled}");
    let none = GetPipeline { id: PipelineId::new() };
    assert_eq!(refused(suite.bus.ask(&user(), &none).await.unwrap_err()).0, "not_found");
}

#[tokio::test]
async fn numbers_are_dense_whatever_comes_at_once() {
    let suite = suite().await;
    let revision = suite.push(Some(GOOD));
    let mut deliveries = Vec::new();
    for _ in 0..6 {
        deliveries.push(suite.deliver(&revision, false).await);
    }
    let ask = suite.ask();
    let user = user();
    let asked = futures::future::join_all((0..6).map(|_| suite.bus.ask(&user, &ask))).await;
    let mut numbers: Vec<i64> = asked.into_iter().map(|view| view.unwrap().number).collect();
    for delivery in deliveries {
        numbers.push(suite.pipeline(delivery).await.number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    let order: Vec<i64> = suite.created().await.into_iter().map(|(_, event)| event.number).collect();
    assert_eq!(order, (1..=12).collect::<Vec<_>>(), "in commit order");
}

#[tokio::test]
async fn what_is_wrong_becomes_an_errored_pipeline() {
    let suite = suite().await;
    let missing = suite.pipeline(suite.deliver(&suite.push(None), false).await).await;
    assert_eq!((&*missing.state, &*missing.errors[0].kind), ("errored", "config-fetch"));
    assert!(missing.errors[0].message.contains(".circleci/config.yml"), "{}", missing.errors[0].message);

    let broken = GOOD.replace("jobs: [build]", "jobs: [biuld]");
    let broken = suite.pipeline(suite.deliver(&suite.push(Some(&broken)), false).await).await;
    assert_eq!((broken.number, &*broken.state, &*broken.errors[0].kind), (2, "errored", "config"));
    let message = &broken.errors[0].message;
    assert!(message.contains(".circleci/config.yml:10:"), "{message}");
    assert!(message.contains("biuld"), "{message}");

    let large = format!("# {}", "x".repeat(1 << 20));
    let large = suite.pipeline(suite.deliver(&suite.push(Some(&large)), false).await).await;
    assert!(large.errors[0].message.contains("1048576"), "{}", large.errors[0].message);
    for (_, event) in suite.created().await {
        assert_eq!((event.plan, event.plan_digest), (None, None));
    }
}

#[tokio::test]
async fn a_delivery_is_decided_once() {
    let suite = suite().await;
    let revision = suite.push(Some(GOOD));
    let skipped = suite.deliver(&revision, true).await;
    assert!(
        matches!(suite.decision(skipped).await, Decision::Skipped { reason } if reason.contains("[skip ci]"))
    );
    let unknown = GetDecision { delivery_id: DeliveryId::new(), wait_ms: 10 };
    assert!(matches!(suite.bus.ask(&user(), &unknown).await.unwrap(), Decision::Pending));

    let delivery = suite.deliver(&revision, false).await;
    suite.pipeline(delivery).await;
    let changed = sqlx::query("UPDATE pipelines.decisions SET reason = 'x', pipeline_id = NULL")
        .execute(&suite.db.pool)
        .await;
    assert!(changed.is_err(), "a decision is final");
    let changed =
        sqlx::query("UPDATE pipelines.pipelines SET state = 'errored'").execute(&suite.db.pool).await;
    assert!(changed.is_err(), "a pipeline is final");
    sqlx::query("UPDATE pipelines.pipelines SET subject = NULL").execute(&suite.db.pool).await.unwrap();
    assert_eq!(suite.created().await.len(), 1);
}

#[tokio::test]
async fn triggers_take_a_branch_or_tag_and_parameters() {
    let suite = suite().await;
    let config = GOOD
        .replace(
            "jobs:\n  build",
            "parameters:\n  word:\n    type: string\n    default: none\njobs:\n  build",
        )
        .replace("<< pipeline.number >>", "<< pipeline.parameters.word >>");
    let revision = suite.push(Some(&config));
    sh(&suite.folder.path().join("git/local/demo.git"), "git tag v1 main");

    let by_default = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    assert_eq!(by_default.vcs, Vcs { revision: revision.clone(), branch: Some("main".into()), tag: None });
    assert_eq!((&*by_default.trigger.kind, by_default.trigger.actor_login.as_deref()), ("api", Some("ada")));
    assert_eq!(by_default.subject.as_deref(), Some("Say hello"));
    let branch = TriggerPipeline { branch: Some("feature/x".into()), ..suite.ask() };
    assert_eq!(suite.bus.ask(&user(), &branch).await.unwrap().vcs.branch.as_deref(), Some("feature/x"));
    let tag = TriggerPipeline { tag: Some("v1".into()), ..suite.ask() };
    let tagged = suite.bus.ask(&user(), &tag).await.unwrap();
    assert_eq!((tagged.vcs.tag.as_deref(), tagged.vcs.branch), (Some("v1"), None));

    let with = |value: serde_json::Value| {
        let parameters = value.as_object().unwrap().clone();
        TriggerPipeline { parameters, ..suite.ask() }
    };
    let view = suite.bus.ask(&user(), &with(json!({"word": "given"}))).await.unwrap();
    let compiled = inline(suite.bus.ask(&user(), &GetPipelineConfig { id: view.id }).await.unwrap().compiled);
    assert!(compiled.contains("echo pipeline given"), "{compiled}");
    for wrong in [json!({"other": "x"}), json!({"word": true})] {
        let (code, message) = refused(suite.bus.ask(&user(), &with(wrong.clone())).await.unwrap_err());
        assert_eq!(code, "invalid", "{wrong}: {message}");
    }

    let both = TriggerPipeline { branch: Some("main".into()), tag: Some("v1".into()), ..suite.ask() };
    assert_eq!(refused(suite.bus.ask(&user(), &both).await.unwrap_err()).0, "invalid");
    let gone = TriggerPipeline { branch: Some("gone".into()), ..suite.ask() };
    assert_eq!(
        refused(suite.bus.ask(&user(), &gone).await.unwrap_err()),
        ("not_found".into(), "Branch gone not found".into())
    );
    let mut elsewhere = suite.ask();
    elsewhere.project.name = "none".into();
    assert_eq!(refused(suite.bus.ask(&user(), &elsewhere).await.unwrap_err()).0, "not_found");

    let options = || AskOptions { idempotency_key: Some("once".into()), ..AskOptions::default() };
    let first = suite.bus.ask_with(options(), &user(), &suite.ask()).await.unwrap();
    let again = suite.bus.ask_with(options(), &user(), &suite.ask()).await.unwrap();
    assert_eq!((first.id, first.number), (again.id, again.number));
    assert_eq!(first.number, 5, "refusals take no number");
}

#[tokio::test]
async fn a_large_plan_is_a_blob() {
    let suite = suite().await;
    let config = GOOD.replace("echo pipeline", &format!("echo {}", "x".repeat(200_000)));
    suite.pipeline(suite.deliver(&suite.push(Some(&config)), false).await).await;
    let (_, event) = suite.created().await.remove(0);
    assert_eq!((&event.errors, event.plan), (&Vec::new(), None));
    let digest = event.plan_digest.unwrap();
    let stored = suite.blobs.get(&Key::new(format!("plans/{digest}")).unwrap(), None).await.unwrap();
    let bytes = stored.bytes().await.unwrap();
    assert_eq!(hex::encode(blobs::digest(&bytes)), digest);
    let plan: model::plan::Plan = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(plan.workflows.len(), 1);
}
