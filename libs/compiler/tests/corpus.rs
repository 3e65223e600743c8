//! Every file of the corpus of public configurations against what its index says it is.

use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, check, code, compile};
use model::plan::JobKind;
use std::borrow::Cow;
use std::collections::BTreeMap;

#[path = "support/corpus.rs"]
mod corpus;
use corpus::{Corpus, File};

/// Files that do not do what their kind says, each with the reason. No more than five.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("angular__angular-cli/37debd7105/.circleci/config.yml", "it requires a job that it does not define"),
    ("snyk__kubernetes-monitor/11f60fda37/.circleci/config/@config.yml", "a part of a packed folder"),
    (
        "OpenLineage__OpenLineage/8f02abfb7a/.circleci/continue_config.yml",
        "a part: a script adds the workflows",
    ),
    (
        "circle-makotom__circle-job-level-path-filtering/c0e6b95ce2/.circleci/continue-config.yml",
        "a template: a script reads and removes `filters: paths`",
    ),
    ("orchestration-examples/override-with.yml", "a template: `<< url-ref >>` stands for an address"),
];

/// Blocks of the documentation that are wrong, not only short.
const DOCUMENTATION: &[(&str, &str)] = &[
    ("openid-connect-tokens/L141.yml", "keys of a step are not indented"),
    ("postgres-config/L91.yml", "keys of a step are not indented"),
    ("collect-test-data/L266.yml", "`store_artifacts` has no key `prefix`"),
    ("migrating-from-aws/L141.yml", "`jobs` stands beside its workflow, not in it"),
    ("browser-testing/L70.yml", "a job stands where its invocation is meant"),
];

/// What an example of the documentation may leave out: what it is not about stands elsewhere, or has a
/// placeholder (`x.y`, `…`, an attribute of the page in braces).
fn is_left_out(error: &Diagnostic) -> bool {
    let absent = [
        code::UNKNOWN_JOB,
        code::UNKNOWN_COMMAND,
        code::UNKNOWN_EXECUTOR,
        code::MISSING_KEY,
        code::NO_EXECUTOR,
        code::ORB_REFERENCE,
    ];
    let empty = ["not null", "not an empty list", "// other config\"", "`xcode` must be a text, not a map"];
    absent.contains(&error.code) || empty.iter().any(|end| error.message.ends_with(end))
}

fn values() -> PipelineValues {
    PipelineValues {
        id: "5034460f-c7c4-4c43-9457-de07e2029e7b".into(),
        number: 7,
        project_slug: "gh/acme/app".into(),
        branch: Some("main".into()),
        revision: "0123456789abcdef0123456789abcdef01234567".into(),
        trigger_source: "webhook".into(),
        ..PipelineValues::default()
    }
}

fn run(corpus: &Corpus, file: &File) -> Result<Compiled, Vec<Diagnostic>> {
    let text = completed(file);
    compile(&Input { values: values(), orbs: &corpus.orbs, ..Input::new(&file.path, &text) })
}

/// Examples of the documentation leave out what they are not about: a version, and a workflow of the jobs.
fn completed(file: &File) -> Cow<'_, str> {
    let has = |key: &str| file.text.lines().any(|line| line.starts_with(key));
    if file.expect.is_none() || !has("jobs:") || has("workflows:") || file.text.contains("\n  build:") {
        return Cow::Borrowed(&file.text);
    }
    let after = file.text.split("\njobs:\n").nth(1).unwrap_or_default();
    let job = |line: &str| line.strip_prefix("  ")?.strip_suffix(':').map(str::to_owned);
    let names: Vec<String> = after
        .lines()
        .take_while(|line| line.starts_with([' ', '#']) || line.is_empty())
        .filter_map(job)
        .collect();
    let names = names.iter().filter(|name| !name.starts_with([' ', '#', '-'])).cloned().collect::<Vec<_>>();
    Cow::Owned(format!("{}\nworkflows:\n  all:\n    jobs: [{}]\n", file.text, names.join(", ")))
}

/// What became of a file.
enum Outcome {
    Valid,
    OnlyMissingOrbs,
    Wrong(String),
}

/// An orb that is not in the corpus, on the network, or put in while the pipeline runs (`orb-tools`: the file
/// has no entry for it, or an empty one).
fn is_missing_orb(error: &Diagnostic) -> bool {
    [code::ORB_NOT_FOUND, code::ORB_UNAVAILABLE, code::UNKNOWN_ORB].contains(&error.code)
}

fn outcome(result: Result<(), Vec<Diagnostic>>) -> Outcome {
    match result {
        Ok(()) => Outcome::Valid,
        Err(errors) if errors.iter().all(is_missing_orb) => Outcome::OnlyMissingOrbs,
        Err(errors) => {
            let others = errors.iter().filter(|error| !is_missing_orb(error));
            let lines: Vec<String> = others.take(4).map(Diagnostic::one_line).collect();
            Outcome::Wrong(lines.join("\n    "))
        }
    }
}

#[test]
fn every_file_is_what_its_kind_says() {
    let Some(corpus) = Corpus::open() else { return };
    let mut rates: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let (mut wrong, mut excerpts) = (Vec::new(), 0);
    for file in &corpus.files {
        let what = match &file.expect {
            Some(expect) => format!("documented {} ({expect})", file.kind),
            None => file.kind.clone(),
        };
        let mut outcome = match file.kind.as_str() {
            "config" | "setup" => outcome(run(&corpus, file).map(|_| ())),
            "orb" => {
                let input =
                    Input { values: values(), orbs: &corpus.orbs, ..Input::new(&file.path, &file.text) };
                outcome(check::orb(&input).map(|_| ()))
            }
            // A part of something is YAML; what it means is said by what it is part of.
            "fragment" => match run(&corpus, file) {
                Err(errors) if errors.iter().any(|error| error.code == code::YAML_SYNTAX) => {
                    outcome(Err(errors))
                }
                _ => Outcome::Valid,
            },
            "unparsable" => match run(&corpus, file) {
                Err(errors) if errors[0].code == code::YAML_SYNTAX => Outcome::Valid,
                _ => Outcome::Wrong("it was read although it is no YAML".into()),
            },
            other => panic!("{}: the kind {other} is not known", file.path),
        };
        let mut excerpt = false;
        if let (Outcome::Wrong(_), Some(_), Err(errors)) = (&outcome, &file.expect, run(&corpus, file)) {
            excerpt = errors.iter().all(|error| is_missing_orb(error) || is_left_out(error));
        }
        if excerpt {
            excerpts += 1;
            outcome = Outcome::Valid;
        }
        let rate = rates.entry(what).or_default();
        match outcome {
            Outcome::Valid => rate[0] += 1,
            Outcome::OnlyMissingOrbs => rate[1] += 1,
            Outcome::Wrong(lines) => {
                rate[2] += 1;
                if !EXCEPTIONS.iter().chain(DOCUMENTATION).any(|(path, _)| file.path.ends_with(path)) {
                    wrong.push(format!("{}:\n    {lines}", file.path));
                }
            }
        }
    }
    for (what, [valid, missing, wrong]) in &rates {
        println!(
            "{what}: {valid} as expected, {missing} with orbs that are not in the corpus, {wrong} otherwise"
        );
    }
    println!("{excerpts} of the documented ones are excerpts: refused only for what they leave out");
    assert!(EXCEPTIONS.len() <= 5);
    assert!(wrong.is_empty(), "{} files:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is known of a configuration without compiling it: `tests/facts.txt`.
fn facts(plan: &model::plan::Plan) -> String {
    let mut out = String::new();
    for workflow in &plan.workflows {
        out.push_str(&format!("  workflow {}\n", workflow.name));
        for job in &workflow.jobs {
            let what = match &job.kind {
                JobKind::Build { definition } => format!("{} steps", definition.steps.len()),
                _ => "approval".to_owned(),
            };
            let mut after: Vec<&str> = job.requires.iter().map(|edge| edge.job.as_str()).collect();
            after.sort_unstable();
            let after =
                if after.is_empty() { String::new() } else { format!("; after {}", after.join(", ")) };
            out.push_str(&format!("    {}: {what}{after}\n", job.name));
        }
    }
    out
}

#[test]
fn jobs_edges_and_steps_of_forty_configurations() {
    let Some(corpus) = Corpus::open() else { return };
    let text = include_str!("facts.txt");
    let (mut checked, mut wrong) = (0, Vec::new());
    for block in text.split("\n\n").skip(1) {
        let (path, expected) = block.trim_end().split_once('\n').expect("a path and facts");
        let file = corpus.files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path}"));
        let found = match run(&corpus, file) {
            Ok(compiled) => facts(&compiled.plan),
            Err(errors) => format!("{errors:?}"),
        };
        checked += 1;
        if found.trim_end() != expected {
            wrong.push(format!("{path}\n--- expected\n{expected}\n--- found\n{found}"));
        }
    }
    assert!(checked >= 40, "{checked}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
