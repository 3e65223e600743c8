//! Setup configurations and what continues them.

use crate::*;

const SETUP: &str = "
version: 2.1
setup: true
parameters:
  kind: {type: string, default: none}
jobs:
  decide:
    machine: true
    steps:
      - run: echo << pipeline.parameters.kind >>
workflows:
  setup:
    jobs: [decide]
";

const SECOND: &str = "
version: 2.1
parameters:
  kind: {type: string, default: plain}
  run: {type: boolean, default: false}
jobs:
  build:
    machine: true
    steps:
      - run: echo << pipeline.parameters.kind >> in << pipeline.number >>
workflows:
  main:
    when: << pipeline.parameters.run >>
    jobs: [build]
";

impl Suite {
    async fn go_on(
        &self,
        id: PipelineId,
        parameters: serde_json::Value,
    ) -> Result<PipelineView, RequestError> {
        let parameters = parameters.as_object().unwrap().clone();
        self.bus.ask(&user(), &ContinuePipeline { id, configuration: SECOND.into(), parameters }).await
    }

    async fn begun(&self) -> PipelineView {
        let view = self.pipeline(self.deliver(&self.push(Some(SETUP)), false).await).await;
        assert_eq!((&*view.state, &view.errors), ("setup", &vec![]));
        view
    }
}

#[tokio::test]
async fn a_setup_pipeline_is_continued_once() {
    let suite = suite().await;
    let view = suite.begun().await;
    let (_, created) = suite.created().await.remove(0);
    let plan = serde_json::to_value(created.plan).unwrap();
    assert!(created.setup);
    assert_eq!(
        plan["workflows"][0]["jobs"][0]["kind"]["definition"]["continues"], true,
        "it is handed the key"
    );

    let continued = suite.go_on(view.id, json!({"run": true})).await.unwrap();
    assert_eq!((&*continued.state, continued.number), ("created", view.number));
    let (envelope, second) = suite.created().await.pop().unwrap();
    assert_eq!((&*envelope.kind, envelope.aggregate.version), ("pipeline.continued", 2));
    assert_eq!(envelope.personal, Some(json!({"subject": "Say hello"})));
    let plan = second.plan.unwrap();
    assert_eq!((plan.workflows[0].name.as_str(), second.setup), ("main", false));
    assert!(serde_json::to_string(&plan).unwrap().contains("echo plain in 1"));

    let config = suite.bus.ask(&user(), &GetPipelineConfig { id: view.id }).await.unwrap();
    assert_eq!(inline(config.source), SECOND);
    assert_eq!(inline(config.setup.unwrap().source), SETUP);
    let (code, message) = refused(suite.go_on(view.id, json!({})).await.unwrap_err());
    assert_eq!((&*code, &*message), ("not_in_setup", "Pipeline is not in setup state."));
    let unknown = suite.go_on(PipelineId::new(), json!({})).await.unwrap_err();
    assert_eq!(refused(unknown).0, "not_found");
    let plain = suite.pipeline(suite.deliver(&suite.push(Some(GOOD)), false).await).await;
    assert_eq!(refused(suite.go_on(plain.id, json!({})).await.unwrap_err()).0, "not_in_setup");
}

#[tokio::test]
async fn parameters_of_a_continuation() {
    let suite = suite().await;
    suite.push(Some(SETUP));
    let parameters = json!({"kind": "given"}).as_object().unwrap().clone();
    let triggered = suite.bus.ask(&user(), &TriggerPipeline { parameters, ..suite.ask() }).await.unwrap();
    assert_eq!(triggered.state, "setup");

    let conflict = suite.go_on(triggered.id, json!({"kind": "other"})).await.unwrap_err();
    assert_eq!(refused(conflict), ("invalid".into(), "Conflicting pipeline parameters.".into()));
    let undeclared = suite.go_on(triggered.id, json!({"nothing": 1})).await.unwrap_err();
    assert!(refused(undeclared).1.contains("nothing"));

    let view = suite.go_on(triggered.id, json!({"run": true})).await.unwrap();
    assert_eq!(view.state, "created", "what was refused changed nothing");
    let (_, second) = suite.created().await.pop().unwrap();
    assert!(
        serde_json::to_string(&second.plan).unwrap().contains("echo given in"),
        "the trigger's value is taken"
    );

    let values = suite.bus.ask(&user(), &GetPipelineValues { id: view.id }).await.unwrap();
    assert_eq!(values["pipeline.number"], json!(view.number));
    assert_eq!(values["pipeline.trigger_source"], "api");
    assert_eq!(values["pipeline.git.branch.is_default"], true);
    assert!(!values.contains_key("pipeline.git.tag"), "what is null is left out");
}

#[tokio::test]
async fn a_continuation_that_is_broken_late_or_empty() {
    let suite = suite().await;
    let go_on = async |id, text: &str| {
        let ask = ContinuePipeline { id, configuration: text.into(), parameters: Map::new() };
        suite.bus.ask(&user(), &ask).await
    };
    let text = SECOND.replace("default: false", "default: true").replace("jobs: [build]", "jobs: [biuld]");
    let broken = go_on(suite.begun().await.id, &text).await.unwrap();
    assert_eq!(broken.state, "errored");
    assert!(broken.errors[0].message.contains("biuld"), "{:?}", broken.errors);
    let again = go_on(suite.begun().await.id, SETUP).await.unwrap();
    assert!(again.errors[0].message.contains("another setup configuration"), "{:?}", again.errors);
    let empty =
        go_on(suite.begun().await.id, "{version: 2, jobs: {}, workflows: {version: 2}}").await.unwrap();
    assert_eq!((&*empty.state, &empty.errors), ("created", &vec![]));

    let late = suite.begun().await.id;
    let mut conn = suite.db.pool.acquire().await.unwrap();
    let age = "ALTER TABLE pipelines.pipelines DISABLE TRIGGER terminal; \
               UPDATE pipelines.pipelines SET created_at = now() - interval '7 hours' WHERE state = 'setup'; \
               ALTER TABLE pipelines.pipelines ENABLE TRIGGER terminal";
    sqlx::Executor::execute(&mut *conn, age).await.unwrap();
    assert_eq!(refused(go_on(late, SECOND).await.unwrap_err()).0, "expired");
}
