//! What bundles accept, and what they decide.

use gantry_policy::{Bundle, Decision, Outcome, Status, Violation, cases};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn bundle(files: &[(&str, &str)]) -> Result<Bundle, Vec<String>> {
    let files: BTreeMap<String, String> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    Bundle::parse(&files).map_err(|error| error.0)
}

fn one(rules: &str) -> Bundle {
    bundle(&[("a.rego", &format!("package org\nimport data.circleci.config\npolicy_name[\"a\"]\n{rules}"))])
        .unwrap()
}

fn found(rule: &str, reason: &str) -> Violation {
    Violation { rule: rule.to_owned(), reason: reason.to_owned() }
}

#[test]
fn no_policies_pass() {
    assert_eq!(bundle(&[]).unwrap().decide(&json!({}), &json!({})), Decision::pass());
}

#[test]
fn what_is_no_policy_is_refused_with_its_file() {
    let named = "package org\npolicy_name[\"a\"]\n";
    for (files, part) in [
        (vec![("x.rego", "package org\nallow {")], "x.rego"),
        (vec![("x.rego", "package other\npolicy_name[\"a\"]")], "the package is `other`"),
        (vec![("x.rego", "package org\nenable_rule[\"a\"]")], "first rule must be `policy_name"),
        (vec![("x.rego", "package org\npolicy_name[\"a-b\"]")], "letters, digits and underscores"),
        (vec![("x.rego", named), ("y.rego", named)], "declares the policy \"a\" too"),
        (
            vec![("x.rego", "package org\npolicy_name[\"a\"]\nr { data.meta.branch == 1 }")],
            "data.meta.vcs.branch",
        ),
        (vec![("x.rego", "package org\npolicy_name[\"a\"]\nr { http.send({}) }")], "http.send"),
        (
            vec![("x.rego", "package org\npolicy_name[\"a\"]\nr { net.lookup_ip_addr(\"a\") }")],
            "lookup_ip_addr",
        ),
    ] {
        let problems = bundle(&files).map(|_| ()).expect_err(part);
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
    }
}

#[test]
fn rules_fail_hard_or_soft() {
    let bundle = one(r#"
enable_rule["text"]
enable_rule["set"]
enable_hard["map"]
hard_fail["text"]
hard_fail["off"]
text = "no" { input.version == 2.1 }
set["b"] { true }
set["a"] { true }
set[1] { true }
map = {"x": "because", "y": 1}
off = "never said"
"#);
    let decision = bundle.decide(&json!({"version": 2.1}), &json!({}));
    assert_eq!(decision.status, Status::HardFail);
    assert_eq!(decision.enabled_rules, ["map", "set", "text"]);
    assert_eq!(decision.hard_failures, [found("map", "because"), found("text", "no")]);
    assert_eq!(decision.soft_failures, [found("set", "a"), found("set", "b")]);
    assert!(decision.blocks());
    let soft = one("enable_rule[\"r\"]\nr = \"no\"").decide(&json!({}), &json!({}));
    assert_eq!((soft.status, soft.blocks()), (Status::SoftFail, false));
    let text = serde_json::to_value(Decision::pass()).unwrap();
    assert_eq!(text, json!({"status": "PASS"}), "empty lists are left out");
}

#[test]
fn what_cannot_be_decided_blocks() {
    let conflict = one("enable_rule[\"r\"]\nr = \"a\" { true }\nr = \"b\" { true }");
    let decision = conflict.decide(&json!({}), &json!({}));
    assert_eq!((decision.status, decision.blocks()), (Status::Error, true));
    assert!(decision.reason.is_some());
    let shape = one("enable_rule = \"r\"").decide(&json!({}), &json!({}));
    assert_eq!(shape.status, Status::Error);
}

#[test]
fn an_endless_policy_is_ended() {
    let slow = one(
        "enable_rule[\"r\"]\nr = \"x\" { count([1 | numbers.range(1, 3000)[_]; numbers.range(1, 3000)[_]; numbers.range(1, 3000)[_]]) > 1 }",
    );
    let decision = slow.decide(&json!({}), &json!({}));
    assert_eq!(decision.status, Status::Error, "{decision:?}");
}

#[test]
fn helpers_ban_orbs() {
    let bundle = one(r#"
enable_rule["names"]
enable_rule["versions"]
names = config.ban_orbs(["evil/corp"])
versions = config.ban_orbs_version(["old/orb@1.2.3", "new/orb@2"])
"#);
    let input =
        json!({"orbs": {"e": "evil/corp@1", "o": "old/orb@1.2.3", "n": "new/orb@3", "inline": {"jobs": {}}}});
    let decision = bundle.decide(&input, &json!({}));
    assert_eq!(
        decision.soft_failures,
        [
            found("names", "evil/corp orb is not allowed in CircleCI configuration"),
            found("versions", "old/orb@1.2.3 orb is not allowed in CircleCI configuration"),
        ]
    );
}

#[test]
fn helpers_guard_contexts_and_classes() {
    let bundle = one(r#"
enable_rule["blocked"]
enable_rule["allowed"]
enable_rule["reserved"]
enable_rule["branches"]
enable_rule["classes"]
enable_rule["required"]
blocked = config.contexts_blocked_by_project_ids(["p"], ["bad"])
allowed = config.contexts_allowed_by_project_ids("p", ["good", "bad"])
reserved = config.contexts_reserved_by_project_ids(["q"], ["good"])
branches = config.contexts_reserved_by_branches(["main"], ["good"])
classes = config.resource_class_by_project({"large": {"q"}})
required = config.require_jobs(["build", "scan"])
"#);
    let workflows = json!({
        "version": 2,
        "main": {"jobs": ["lint", {"build": {"context": ["bad", "other"]}}, {"ship": {"context": "good"}}]},
    });
    let input = json!({
        "workflows": workflows,
        "_compiled_": {"workflows": workflows, "jobs": {"build": {"resource_class": "large"}, "ship": {}}},
    });
    let decision = bundle.decide(&input, &json!({"project_id": "p"}));
    assert_eq!(
        decision.soft_failures,
        [
            found("allowed", "main.build: uses context value(s) not in allowlist for project: other"),
            found("blocked", "main.build: uses context value(s) in blocklist for project: bad"),
            found(
                "branches",
                "main.ship: uses context value(s): good - that must be limited to branches: main"
            ),
            found(
                "classes",
                "project is not allowed to use resource_class \"large\" declared in job \"build\""
            ),
            found("required", "scan job is required"),
            found("reserved", "main.ship: uses context value(s) reserved to other projects: good"),
        ],
        "{:?}",
        decision.reason
    );
}

#[test]
fn test_files_inherit() {
    let bundle = one("enable_rule[\"r\"]\nr = \"no\" { input.jobs.a == data.meta.wanted }");
    let file = json!({
        "anchors": {"anything": true},
        "test_r": {
            "input": {"jobs": {"a": 1, "b": 2}},
            "meta": {"wanted": 1, "more": 2},
            "decision": {"status": "SOFT_FAIL", "enabled_rules": ["r"], "soft_failures": [{"rule": "r", "reason": "no"}]},
            "cases": {
                "other": {"meta": {"wanted": 3}, "decision": {"status": "PASS", "enabled_rules": ["r"]}},
                "wrong": {"decision": {"status": "PASS"}},
                "compiled": {"compile": true, "pipeline_parameters": {"p": 1}},
            },
        },
    });
    let all = cases(&file).unwrap();
    let compile = |input: &Value, parameters: &serde_json::Map<String, Value>| {
        if parameters.contains_key("p") { Err(format!("cannot compile {input}")) } else { Ok(json!({})) }
    };
    let outcomes: Vec<_> = all.iter().map(|case| (case.name.as_str(), case.run(&bundle, &compile))).collect();
    assert_eq!(outcomes[0], ("test_r", Outcome::Passed));
    assert!(
        matches!(&outcomes[1], ("test_r/compiled", Outcome::Broken(why)) if why.starts_with("cannot compile"))
    );
    assert_eq!(outcomes[2], ("test_r/other", Outcome::Passed));
    assert!(matches!(&outcomes[3], ("test_r/wrong", Outcome::Failed { .. })));
    assert!(cases(&json!({"test_x": {"inptu": 1}})).unwrap_err().contains("inptu"));
}
