//! What is said about a configuration beside compiling it: explain, simulate, graph, diff.

use gantry_compiler::explain::{ExplainError, Explanation, explain};
use gantry_compiler::simulate::{Simulation, simulate};
use gantry_compiler::{Input, PipelineValues, compile, diff, graph};

const SOURCE: &str = r#"version: 2.1
parameters:
  level:
    type: string
    default: info
orbs:
  kit:
    commands:
      say:
        parameters:
          word: {type: string, default: nothing}
        steps:
          - run: {name: "say << parameters.word >>", command: "echo << parameters.word >>"}
executors:
  box:
    parameters:
      tag: {type: string}
    docker:
      - image: cimg/base:<< parameters.tag >>
commands:
  twice:
    parameters:
      what: {type: string}
    steps:
      - kit/say: {word: << parameters.what >>}
      - kit/say
jobs:
  work:
    parameters:
      os: {type: string, default: linux}
    executor: {name: box, tag: edge}
    environment:
      LEVEL: << pipeline.parameters.level >>
    steps:
      - checkout
      - twice: {what: << parameters.os >>}
  other:
    machine: true
    steps: [checkout]
workflows:
  main:
    jobs:
      - work:
          matrix:
            parameters: {os: [a, b]}
          filters:
            branches: {only: [main, /rel-.*/]}
      - hold:
          type: approval
          requires: [work]
      - other:
          requires: [hold, {work-a: failed}]
      - free:
          type: approval
          filters: pipeline.git.branch == "dev"
  nightly:
    when:
      equal: [debug, << pipeline.parameters.level >>]
    jobs: [other]
"#;

fn input<'a>(branch: Option<&str>, tag: Option<&str>) -> Input<'a> {
    let values = PipelineValues {
        branch: branch.map(str::to_owned),
        tag: tag.map(str::to_owned),
        ..PipelineValues::default()
    };
    Input { values, ..Input::new("config.yml", SOURCE) }
}

/// 1-based line of the first line that holds a text.
fn line(text: &str) -> usize {
    SOURCE.lines().position(|line| line.contains(text)).expect(text) + 1
}

fn explained(path: &str) -> Explanation {
    explain(&input(Some("main"), None), path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn a_value_is_followed_to_its_place_its_calls_and_its_arguments() {
    let found = explained("jobs.work-a.steps[1].run.command");
    assert_eq!(found.value, "echo a");
    assert_eq!(found.written.expect("place").line, line("name: \"say"));
    let calls: Vec<(&str, usize)> = found.calls.iter().map(|c| (c.what.as_str(), c.at.line)).collect();
    let expected = [
        ("command: 'kit/say' of an inline orb", line("- kit/say: {word")),
        ("command: 'twice'", line("- twice:")),
        ("job: 'work'", line("- work:")),
        ("workflow: 'main'", line("  main:")),
    ];
    for ((what, at), (expected_what, expected_at)) in calls.iter().zip(expected) {
        let word = expected_what.split(" of ").next().expect("word");
        assert!(what.starts_with(word), "{what}");
        assert_eq!(*at, expected_at, "{what}");
    }
    assert_eq!(calls.len(), 4);
    assert_eq!(found.uses.len(), 1);
    assert_eq!((found.uses[0].name.as_str(), found.uses[0].value.as_str()), ("parameters.word", "a"));

    // The second call takes the default.
    let found = explained("jobs.work-b.steps.2.run.command");
    assert_eq!(found.value, "echo nothing");
    assert_eq!(found.uses[0].from.as_ref().expect("place").line, line("default: nothing"));
    assert_eq!(found.calls[0].at.line, line("      - kit/say\n".trim_end()) + 1);
}

#[test]
fn executors_environments_and_invocations_are_explained() {
    let found = explained("jobs.work-a.docker[0].image");
    assert_eq!(found.value, "cimg/base:edge");
    assert_eq!(found.written.expect("place").line, line("- image:"));
    assert_eq!(found.uses[0].from.as_ref().expect("place").line, line("tag: edge"));
    assert_eq!(explained("jobs.work-a.environment.LEVEL").value, "info");
    let requires = explained("workflows.main.jobs.hold.requires");
    assert_eq!(requires.written.expect("place").line, line("requires: [work]"));
}

#[test]
fn a_path_that_leads_nowhere_says_what_there_is() {
    let error = |path: &str| match explain(&input(Some("main"), None), path) {
        Err(ExplainError::NotFound { path, hint }) => (path, hint),
        other => panic!("{other:?}"),
    };
    assert_eq!(error("jobs.wrok-a"), ("jobs.wrok-a".into(), ": did you mean `work-a`?".into()));
    assert_eq!(error("jobs.work-a.steps[9]").1, ": there is an index from 0 to 2");
    assert!(error("jobs.other.machine.x").1.contains("is a single value"));
    let broken = Input::new("c.yml", "version: 2.1\njobs: {build: {}}\n");
    assert!(matches!(explain(&broken, "jobs"), Err(ExplainError::Invalid(_))));
}

fn reasons(simulation: &Simulation) -> Vec<String> {
    let mut lines = Vec::new();
    for workflow in &simulation.workflows {
        lines.push(format!(
            "{} {}: {}",
            workflow.name,
            workflow.runs,
            workflow.reason.as_deref().unwrap_or("-")
        ));
        for job in &workflow.jobs {
            lines.push(format!("  {} {}: {}", job.name, job.runs, job.reason.as_deref().unwrap_or("-")));
        }
    }
    lines
}

#[test]
fn every_job_that_would_not_run_has_its_reason() {
    let on_main = simulate(&input(Some("main"), None)).expect("valid");
    let expected = [
        "main true: -",
        "  work-a true: -",
        "  work-b true: -",
        "  hold true: -",
        "  other true: -",
        "  free false: its filter is not true: `pipeline.git.branch == \"dev\"`",
        "nightly false: its `when` is not true: `equal: [debug, << pipeline.parameters.level >>]`",
    ];
    assert_eq!(reasons(&on_main), expected);
    assert_eq!(on_main.workflows[0].jobs[3].requires, ["hold", "work-a"]);
    assert_eq!(on_main.workflows[0].jobs[4].line, line("- free:"));

    let on_feature = simulate(&input(Some("feature"), None)).expect("valid");
    let expected = [
        "main false: none of its jobs would run",
        "  work-a false: the branch `feature` matches none of `branches: only`: `main`, `/rel-.*/`",
        "  work-b false: the branch `feature` matches none of `branches: only`: `main`, `/rel-.*/`",
        "  hold false: every job that it requires is left out: work-a, work-b",
        "  other false: every job that it requires is left out: hold, work-a",
    ];
    assert_eq!(reasons(&on_feature)[..5], expected);

    let on_tag = simulate(&input(None, Some("v1"))).expect("valid");
    assert!(reasons(&on_tag)[1].ends_with("the pipeline is for a tag, and the job has no `tags` filter"));
    assert!(!on_tag.workflows[0].runs);
}

#[test]
fn graphs_show_every_job_and_edge() {
    let plan = compile(&input(Some("main"), None)).expect("valid").plan;
    let text = graph::text(&plan);
    assert!(text.contains("  2. hold (approval)  <- work-a, work-b\n"), "{text}");
    assert!(text.contains("  3. other  <- hold, work-a [failed]\n"), "{text}");
    let dot = graph::dot(&plan);
    assert!(dot.starts_with("digraph") && dot.matches(" -> ").count() == 4, "{dot}");
    assert!(dot.contains("w0j0 -> w0j3 [label=\"failed\"];"), "{dot}");
    let mermaid = graph::mermaid(&plan);
    assert!(
        mermaid.contains("w0j2{{\"hold\"}}") && mermaid.contains("w0j0 -->|\"failed\"| w0j3"),
        "{mermaid}"
    );
    assert_eq!(graph::json(&plan)["workflows"][0]["jobs"][2]["type"], "approval");
}

#[test]
fn differences_are_those_of_the_meaning() {
    let plan = |source: &str| {
        let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
        compile(&Input { values, ..Input::new("c.yml", source) }).expect("valid").plan
    };
    let old = "version: 2.1\njobs:\n  a:\n    machine: true\n    steps: [checkout, {run: make}, {run: test}]\n  b: {machine: true, steps: [checkout]}\nworkflows:\n  w: {jobs: [a, b]}\n";
    assert_eq!(diff::diff(&plan(old), &plan(old)), []);
    // Another layout, and the same meaning.
    let moved = "version: 2.1\ncommands: {go: {steps: [{run: {command: make}}]}}\njobs:\n  b: {machine: true, steps: [checkout]}\n  a: {machine: true, steps: [checkout, go, {run: test}]}\nworkflows:\n  w: {jobs: [a, b]}\n";
    assert_eq!(diff::diff(&plan(old), &plan(moved)), []);
    let new = old
        .replace("{run: make}", "{run: lint}, {run: make all}")
        .replace("jobs: [a, b]", "jobs: [a, c: {requires: [a]}]")
        .replace("  b: {", "  c: {");
    let lines: Vec<String> = diff::diff(&plan(old), &plan(&new)).iter().map(diff::Change::line).collect();
    let expected = [
        "- w.b: a job of type build",
        "~ w.a.steps[1].name: \"make\" -> \"lint\"",
        "~ w.a.steps[1].command: \"make\" -> \"lint\"",
        "+ w.a.steps[2]: run \"make all\"",
        "+ w.c: a job of type build",
    ];
    assert_eq!(lines, expected);
}
