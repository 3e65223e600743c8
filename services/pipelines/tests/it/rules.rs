//! Config policies before a pipeline runs.

use crate::*;
use contracts::policies::*;

const MUST_BUILD: &str = "package org
policy_name[\"shape\"]
enable_hard[\"must_build\"]
must_build = \"there is no job called build\" { not input.jobs.build }
";

impl Suite {
    async fn policies(&self, files: serde_json::Value, dry: bool) -> Result<BundleChanges, RequestError> {
        let files = Text::Inline(files.to_string());
        self.bus.ask(&user(), &PushPolicyBundle { org_id: self.project.org_id, files, dry }).await
    }

    async fn enable(&self) {
        let ask = SetPolicySettings { org_id: self.project.org_id, enabled: true };
        assert!(self.bus.ask(&user(), &ask).await.unwrap());
    }

    async fn decisions(&self) -> Vec<PolicyDecisionView> {
        let ask = ListPolicyDecisions { org_id: Some(self.project.org_id), ..ListPolicyDecisions::default() };
        self.bus.ask(&user(), &ask).await.unwrap()
    }

    async fn built(&self, config: &str) -> PipelineView {
        self.pipeline(self.deliver(&self.push(Some(config)), false).await).await
    }
}

#[tokio::test]
async fn a_policy_blocks_and_says_which_rule_and_why() {
    let suite = suite().await;
    suite.policies(json!({"shape.rego": MUST_BUILD}), false).await.unwrap();
    let other = GOOD.replace("build", "make");
    assert_eq!(suite.built(&other).await.state, "created", "policies decide when they are enabled");
    suite.enable().await;
    assert_eq!(suite.built(GOOD).await.state, "created");
    let blocked = suite.built(&other).await;
    assert_eq!(blocked.state, "errored");
    assert_eq!(
        blocked.errors[0].message,
        "blocked by the policy rule `must_build`: there is no job called build"
    );
    let (_, event) = suite.created().await.pop().unwrap();
    assert_eq!((event.plan, event.plan_digest), (None, None));

    let decisions = suite.decisions().await;
    let statuses: Vec<_> = decisions.iter().map(|made| made.decision["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["HARD_FAIL", "PASS"]);
    assert_eq!(
        (decisions[0].pipeline_id, &decisions[0].metadata["build_number"]),
        (Some(blocked.id), &json!(3))
    );
    assert_eq!(decisions[0].policies["shape"].len(), 128);
    let bundle = GetPolicyBundle { org_id: suite.project.org_id, decision: Some(decisions[0].id) };
    let bundle = suite.bus.ask(&user(), &bundle).await.unwrap();
    assert_eq!(
        (bundle[0].name.as_str(), inline(bundle[0].content.clone())),
        ("shape", MUST_BUILD.to_owned())
    );
}

#[tokio::test]
async fn what_cannot_be_decided_does_not_run() {
    let suite = suite().await;
    let broken =
        "package org\npolicy_name[\"c\"]\nenable_rule[\"r\"]\nr = \"a\" { true }\nr = \"b\" { true }\n";
    suite.policies(json!({"c.rego": broken}), false).await.unwrap();
    suite.enable().await;
    let view = suite.built(GOOD).await;
    assert_eq!(view.state, "errored");
    assert!(view.errors[0].message.contains("could not decide"), "{:?}", view.errors);
    assert_eq!(suite.decisions().await[0].decision["status"], "ERROR");
}

#[tokio::test]
async fn a_continuation_is_judged_too() {
    let suite = suite().await;
    let rule = MUST_BUILD.replace("not input.jobs.build", "not input.setup; not input.jobs.build");
    suite.policies(json!({"shape.rego": rule}), false).await.unwrap();
    suite.enable().await;
    let setup = GOOD.replace("version: 2.1", "version: 2.1\nsetup: true").replace("build", "decide");
    let view = suite.built(&setup).await;
    assert_eq!(view.state, "setup", "{:?}", view.errors);
    let configuration = Text::Inline(GOOD.replace("build", "make"));
    let ask = ContinuePipeline { id: view.id, configuration, parameters: Map::new() };
    let continued = suite.bus.ask(&user(), &ask).await.unwrap();
    assert_eq!(continued.state, "errored");
    assert!(continued.errors[0].message.contains("must_build"), "{:?}", continued.errors);
}

#[tokio::test]
async fn bundles_are_replaced_whole() {
    let suite = suite().await;
    let named = |name: &str, more: &str| format!("package org\npolicy_name[\"{name}\"]\n{more}");
    let changes =
        suite.policies(json!({"a.rego": named("a", ""), "b.rego": named("b", "")}), true).await.unwrap();
    assert_eq!(changes.created, ["a", "b"]);
    let current = GetPolicyBundle { org_id: suite.project.org_id, decision: None };
    assert!(suite.bus.ask(&user(), &current).await.unwrap().is_empty(), "a dry run changes nothing");
    suite.policies(json!({"a.rego": named("a", ""), "b.rego": named("b", "")}), false).await.unwrap();
    let next = json!({"a.rego": named("a", "x = 1\n"), "c.rego": named("c", "")});
    let changes = suite.policies(next, false).await.unwrap();
    let expected =
        BundleChanges { created: vec!["c".into()], modified: vec!["a".into()], deleted: vec!["b".into()] };
    assert_eq!(changes, expected);
    let (code, message) = refused(suite.policies(json!({"x.rego": "package x"}), false).await.unwrap_err());
    assert!(code == "invalid" && message.contains("x.rego"), "{message}");

    let ask = DecidePolicy {
        org_id: suite.project.org_id,
        input: "version: 2.1\njobs: {}\n".into(),
        metadata: json!({}),
    };
    assert_eq!(suite.bus.ask(&user(), &ask).await.unwrap(), json!({"status": "PASS"}));
}
