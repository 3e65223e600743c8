//! Every rule of the language that `tests/rules` holds.

use gantry_compiler::explain::{ExplainError, explain};
use gantry_compiler::{
    Compiled, Diagnostic, Input, OrbError, OrbRef, OrbSource, OrbText, PipelineValues, compile,
};
use model::plan::{JobPlan, Requirement};
use model::status::JobStatus;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[path = "support/rules.rs"]
mod rules;
use rules::{Case, cases};

#[derive(Default)]
struct Scene {
    source: String,
    values: PipelineValues,
    parameters: Map<String, Value>,
    inherited: Map<String, Value>,
    orbs: BTreeMap<String, String>,
    continuation: bool,
}

impl OrbSource for Scene {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let shown = reference.to_string();
        let text = self.orbs.get(&shown).ok_or(OrbError::NotFound(None))?;
        Ok(OrbText::new(shown.clone(), text.as_str(), shown))
    }
}

impl Scene {
    fn of(case: &Case) -> Self {
        let mut scene = Self::default();
        scene.values.branch = Some("main".into());
        scene.values.number = 7;
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or_else(|| panic!("{}: NAME=JSON", case.place));
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            (name.to_owned(), value)
        };
        for (word, rest, body) in &case.parts {
            match word.as_str() {
                "config" => scene.source.clone_from(body),
                "orb" => _ = scene.orbs.insert(rest.clone(), body.clone()),
                "branch" => scene.values.branch = Some(rest.clone()),
                "tag" => (scene.values.branch, scene.values.tag) = (None, Some(rest.clone())),
                "param" => scene.parameters.extend([pair(rest)]),
                "inherited" => scene.inherited.extend([pair(rest)]),
                "value" => scene.values.more.extend([pair(rest)]),
                "continuation" => scene.continuation = true,
                _ => {}
            }
        }
        scene
    }

    fn input(&self) -> Input<'_> {
        Input {
            values: self.values.clone(),
            parameters: &self.parameters,
            inherited_parameters: &self.inherited,
            orbs: self,
            continuation: self.continuation,
            ..Input::new("config.yml", &self.source)
        }
    }
}

/// Whether a finding is the one that `CODE LINE [TEXT]` describes.
fn is(finding: &Diagnostic, expected: &str) -> bool {
    let mut words = expected.splitn(3, ' ');
    let code = words.next() == Some(finding.code);
    let line = words.next().and_then(|word| word.parse().ok()) == Some(finding.line);
    code && line && words.next().is_none_or(|text| finding.message.contains(text))
}

fn listed(findings: &[Diagnostic]) -> String {
    findings.iter().map(|finding| format!("\n    {}", finding.one_line())).collect()
}

/// What is wrong with a case, if anything is.
fn judge(case: &Case) -> Option<String> {
    let scene = Scene::of(case);
    let result = compile(&scene.input());
    let expected: Vec<&str> =
        case.parts.iter().filter(|(word, ..)| word == "error").map(|(_, rest, _)| rest.as_str()).collect();
    match (&result, expected.is_empty()) {
        (Ok(_), false) => return Some("it was accepted".into()),
        (Err(errors), true) => return Some(format!("it was refused:{}", listed(errors))),
        (Err(errors), false) => {
            let same = errors.len() == expected.len() && errors.iter().zip(&expected).all(|(e, x)| is(e, x));
            return (!same).then(|| format!("other errors:{}", listed(errors)));
        }
        (Ok(_), true) => {}
    }
    let compiled = result.ok()?;
    let problems: Vec<String> =
        case.parts.iter().filter_map(|part| expectation(part, &scene, &compiled)).collect();
    (!problems.is_empty()).then(|| problems.join("\n  "))
}

fn expectation(
    (word, rest, _): &(String, String, String),
    scene: &Scene,
    compiled: &Compiled,
) -> Option<String> {
    let differs = |found: String, expected: &str| {
        (found != expected).then(|| format!("{word} {rest}: found {found:?}"))
    };
    match word.as_str() {
        "warning" => {
            let found = compiled.warnings.iter().any(|warning| is(warning, rest));
            (!found).then(|| format!("no such warning: {rest}; there are:{}", listed(&compiled.warnings)))
        }
        "is" => {
            let (path, value) = rest.split_once(" = ").unwrap_or((rest, ""));
            match explain(&scene.input(), path) {
                Ok(found) => differs(found.value.replace('\n', "\\n"), value),
                Err(error) => Some(format!("{rest}: {error}")),
            }
        }
        "no" => match explain(&scene.input(), rest) {
            Err(ExplainError::NotFound { .. }) => None,
            _ => Some(format!("`{rest}` is there")),
        },
        "workflows" => {
            let names: Vec<&str> = compiled.plan.workflows.iter().map(|w| w.name.as_str()).collect();
            differs(names.join(", "), rest)
        }
        "jobs" => {
            let (workflow, names) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), ""));
            let found = jobs(compiled, workflow).iter().map(|job| job.name.as_str()).collect::<Vec<_>>();
            differs(found.join(", "), names)
        }
        "after" => {
            let (job, edges) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), ""));
            let (workflow, job) = job.split_once('/').expect("WORKFLOW/JOB");
            let Some(job) = jobs(compiled, workflow).iter().find(|own| own.name == job) else {
                return Some(format!("{rest}: no such job"));
            };
            differs(job.requires.iter().map(edge).collect::<Vec<_>>().join(", "), edges)
        }
        "config" | "orb" | "branch" | "tag" | "param" | "inherited" | "value" | "continuation" | "valid" => {
            None
        }
        other => Some(format!("`{other}` is no directive")),
    }
}

fn jobs<'c>(compiled: &'c Compiled, workflow: &str) -> &'c [JobPlan] {
    let found = compiled.plan.workflows.iter().find(|own| own.name == workflow);
    found.map(|workflow| workflow.jobs.as_slice()).unwrap_or_default()
}

fn edge(edge: &Requirement) -> String {
    if edge.accepts.len() == 1 && edge.accepts.contains(&JobStatus::Success) {
        return edge.job.clone();
    }
    let statuses: Vec<&str> = edge.accepts.iter().map(|status| status.as_str()).collect();
    format!("{} [{}]", edge.job, statuses.join(", "))
}

#[test]
fn every_rule_holds() {
    let cases = cases();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            judge(case).map(|problem| format!("{}: §{} {}: {problem}", case.place, case.section, case.name))
        })
        .collect();
    println!("{} rules", cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
