//! Pipelines that are past their retention.

use crate::*;
use async_trait::async_trait;
use bus::Responder;
use contracts::{
    Request,
    request::Ask,
    retention::{PipelineExpired, RetentionReport, RunRetention, SettledPipelines},
};
use std::{collections::HashSet, sync::Mutex};

/// A conductor that knows which pipelines are over.
#[derive(Default)]
struct Conductor {
    settled: Mutex<HashSet<PipelineId>>,
    asked: Mutex<Vec<SettledPipelines>>,
}

#[async_trait]
impl Responder for Conductor {
    async fn respond(&self, req: Request) -> Result<serde_json::Value, RequestError> {
        assert_eq!(req.name, SettledPipelines::NAME);
        bus::route::<SettledPipelines, _, _>(&req, |ask, _| async move {
            let settled = self.settled.lock().unwrap();
            let ids = ask.pipelines.iter().map(|last| last.pipeline_id).filter(|id| settled.contains(id));
            let ids = ids.collect();
            self.asked.lock().unwrap().push(ask);
            Ok(ids)
        })
        .await
    }
}

/// A suite that keeps pipelines no time at all, and sweeps when it is asked to.
async fn forgetful() -> (Suite, Arc<Conductor>) {
    let hour = Duration::from_secs(3600);
    let suite = suite_with(pipelines::Retention { keep: Some(Duration::from_millis(1)), sweep: hour }).await;
    let conductor = Arc::new(Conductor::default());
    suite.bus.respond("conductor", conductor.clone());
    (suite, conductor)
}

impl Suite {
    /// Asks until no other sweep, for example that of the start, is under way.
    async fn retention(&self, dry_run: bool) -> RetentionReport {
        let report = std::sync::Mutex::new(None);
        testkit::until("the sweep is done", Duration::from_secs(30), || async {
            let answer = self.bus.ask(&user(), &RunRetention { dry_run }).await;
            match answer {
                Ok(done) => *report.lock().unwrap() = Some(done),
                Err(error) => assert_eq!(refused(error).0, "retention_running"),
            }
            report.lock().unwrap().is_some()
        })
        .await;
        report.into_inner().unwrap().unwrap()
    }

    async fn gone(&self, id: PipelineId) -> bool {
        match self.bus.ask(&user(), &GetPipeline { id }).await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(refused(error).0, "not_found");
                true
            }
        }
    }

    async fn expired(&self) -> Vec<PipelineExpired> {
        let bodies: Vec<serde_json::Value> = sqlx::query_scalar(
            "SELECT body FROM pipelines.events WHERE kind = 'pipeline.expired' ORDER BY (body ->> 'number')::bigint",
        )
        .fetch_all(&self.db.pool)
        .await
        .unwrap();
        bodies.into_iter().map(|body| serde_json::from_value(body).unwrap()).collect()
    }
}

#[tokio::test]
async fn only_what_the_conductor_calls_over_goes_and_its_number_stays_taken() {
    let (suite, conductor) = forgetful().await;
    let revision = suite.push(Some(GOOD));
    let delivery = suite.deliver(&revision, false).await;
    let first = suite.pipeline(delivery).await;
    let second = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    let third = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    conductor.settled.lock().unwrap().extend([first.id, third.id]);

    let report = suite.retention(true).await;
    assert_eq!((report.pipelines, report.more), (2, false));
    let project = &report.projects[0];
    assert_eq!((&*project.project, project.first, project.last), ("git/local/demo", 1, 3));
    assert!(!suite.gone(first.id).await, "a look changes nothing");

    let report = suite.retention(false).await;
    assert_eq!(report.pipelines, 2);
    assert!(suite.gone(first.id).await && suite.gone(third.id).await);
    assert!(!suite.gone(second.id).await, "it is not over");
    let told = suite.expired().await;
    assert_eq!(
        told.iter().map(|body| (body.pipeline_id, body.number)).collect::<Vec<_>>(),
        [(first.id, 1), (third.id, 3)]
    );
    assert_eq!(told[0].archived.events, 1);
    let fourth = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    assert_eq!(fourth.number, 4, "the number of what is gone is not given again");

    // The delivery keeps its decision, and its repeat makes nothing new.
    match suite.decision(delivery).await {
        Decision::Pipeline { id, number } => assert_eq!((id, number), (first.id, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(suite.retention(false).await.pipelines, 0);
    let found = ::retention::audit(&suite.db.pool, "pipelines", suite.blobs.as_ref(), &[]).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (1, 0), "{:?}", found.findings);
}

#[tokio::test]
async fn the_conductor_is_asked_about_the_last_event_of_each() {
    let (suite, conductor) = forgetful().await;
    suite.push(Some(GOOD));
    let made = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    suite.retention(true).await;
    let (xid, seq): (String, i64) =
        sqlx::query_as("SELECT xid::text, seq FROM pipelines.events WHERE aggregate_id = $1")
            .bind(made.id.uuid())
            .fetch_one(&suite.db.pool)
            .await
            .unwrap();
    let asked = conductor.asked.lock().unwrap();
    let last = asked.iter().rev().flat_map(|ask| &ask.pipelines).next().unwrap();
    assert_eq!((last.pipeline_id, last.xid.to_string(), last.seq), (made.id, xid, seq));
}

#[tokio::test]
async fn a_setup_configuration_that_may_still_be_continued_stays() {
    let (suite, conductor) = forgetful().await;
    suite.push(Some(&format!("setup: true\n{}", GOOD.trim_start())));
    let made = suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    assert_eq!(made.state, "setup", "{:?}", made.errors);
    conductor.settled.lock().unwrap().insert(made.id);
    assert_eq!(suite.retention(false).await.pipelines, 0);
    assert!(!suite.gone(made.id).await);
}

#[tokio::test]
async fn by_default_everything_is_kept() {
    let suite = suite().await;
    let error = suite.bus.ask(&user(), &RunRetention { dry_run: true }).await.unwrap_err();
    let (code, message) = refused(error);
    assert_eq!(code, "retention_off");
    assert!(message.contains("[retention] pipelines"), "{message}");
    suite.push(Some(GOOD));
    suite.bus.ask(&user(), &suite.ask()).await.unwrap();
    let error = sqlx::query("DELETE FROM pipelines.pipelines").execute(&suite.db.pool).await.unwrap_err();
    assert!(error.to_string().contains("final"), "{error}");
}
