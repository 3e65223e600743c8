//! Schedules in the file (config-language §13.1): when they are kept, and what runs when one comes.

use gantry_compiler::{Input, PipelineValues, compile};
use model::plan::{Plan, Schedule};

const SOURCE: &str = "version: 2.1
jobs: {j: {machine: true, steps: [checkout]}}
workflows:
  nightly:
    triggers:
      - schedule: {cron: '30 4 * * 1-5', filters: {branches: {only: [main, /release-.*/]}}}
      - schedule: {cron: '0 0 1 * *', filters: {branches: {ignore: main}}}
    jobs: [j]
  push: {jobs: [j]}
";

fn plan(branch: &str, schedule: Option<&str>) -> Plan {
    let values = PipelineValues { branch: Some(branch.into()), ..PipelineValues::default() };
    compile(&Input { values, schedule, ..Input::new("config.yml", SOURCE) }).expect("good").plan
}

fn workflows(plan: &Plan) -> Vec<&str> {
    plan.workflows.iter().map(|workflow| workflow.name.as_str()).collect()
}

#[test]
fn a_branch_has_the_schedules_that_its_name_passes() {
    let schedule = |cron: &str| Schedule { workflow: "nightly".into(), cron: cron.into() };
    assert_eq!(plan("main", None).schedules, [schedule("30 4 * * 1-5")]);
    assert_eq!(plan("dev", None).schedules, [schedule("0 0 1 * *")]);
    assert_eq!(plan("release-1", None).schedules, [schedule("30 4 * * 1-5"), schedule("0 0 1 * *")]);
}

#[test]
fn the_workflow_of_a_schedule_runs_alone_and_on_no_push() {
    assert_eq!(workflows(&plan("main", None)), ["push"]);
    assert_eq!(workflows(&plan("main", Some("nightly"))), ["nightly"]);
    assert!(plan("main", Some("push")).workflows.is_empty(), "it has no schedule");
}
