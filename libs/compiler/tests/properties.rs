//! What holds for every configuration.

use gantry_compiler::format::{FormatError, format};
use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, compile, pack};
use model::plan::{JobKind, Step};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/generate.rs"]
mod generate;
use corpus::Corpus;

fn run_with(corpus: Option<&Corpus>, source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let values = PipelineValues { branch: Some("main".into()), number: 7, ..PipelineValues::default() };
    let input = Input { values, ..Input::new("config.yml", source) };
    match corpus {
        Some(corpus) => compile(&Input { orbs: &corpus.orbs, ..input }),
        None => compile(&input),
    }
}

/// The result without what depends on the layout of the file: places, and the source behind the compiled text.
fn meaning(
    result: Result<Compiled, Vec<Diagnostic>>,
) -> Result<(String, String), Vec<(&'static str, String)>> {
    match result {
        Ok(compiled) => {
            let text = compiled.processed.split("\n# Original config.yml file:\n").next().unwrap_or_default();
            Ok((serde_json::to_string(&compiled.plan).expect("plan"), text.to_owned()))
        }
        Err(errors) => {
            let mut list: Vec<_> = errors.into_iter().map(|error| (error.code, error.message)).collect();
            list.sort();
            Err(list)
        }
    }
}

#[test]
fn formatting_changes_no_meaning_and_happens_once() {
    let corpus = Corpus::open();
    let mut texts = vec![generate::typical(), generate::large()];
    for folder in ["good", "bad"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.extension().is_some_and(|extension| extension == "yml") {
                texts.push(std::fs::read_to_string(path).expect("file"));
            }
        }
    }
    if let Some(corpus) = &corpus {
        texts.extend(corpus.files.iter().map(|file| file.text.clone()));
    }
    let (mut formatted, mut changed, mut refused) = (0, 0, Vec::new());
    for text in &texts {
        match format("config.yml", text) {
            Ok(new) => {
                formatted += 1;
                changed += usize::from(new != *text);
                let again = format("config.yml", &new).expect("formats again");
                assert_eq!(again, new, "a second time changes something");
                // The tree is compared by the formatter itself; whole compiles for whole configurations.
                if text.contains("version:") && new != *text {
                    let (before, after) = (run_with(corpus.as_ref(), text), run_with(corpus.as_ref(), &new));
                    assert_eq!(meaning(before), meaning(after), "{text}");
                }
            }
            Err(FormatError::Broken(_)) => {}
            Err(FormatError::Unknown) => refused.push(text.lines().take(3).collect::<Vec<_>>().join(" / ")),
        }
    }
    println!(
        "{formatted} files formatted, {changed} of them changed, {} of an unknown layout",
        refused.len()
    );
    assert!(refused.len() * 100 <= texts.len(), "{}", refused.join("\n"));
}

#[test]
fn packing_one_file_changes_no_meaning() {
    let Some(corpus) = Corpus::open() else { return };
    let mut packed = 0;
    for file in corpus.configs() {
        let before = run_with(Some(&corpus), &file.text);
        if before.is_err() {
            continue;
        }
        let files = BTreeMap::from([("config.yml".to_owned(), file.text.clone())]);
        let text = pack::pack(&files, &|_| None).unwrap_or_else(|error| panic!("{}: {error}", file.path));
        let after = run_with(Some(&corpus), &text);
        // Keys are sorted: workflows come in another order.
        let names = |result: Result<Compiled, Vec<Diagnostic>>| -> BTreeSet<String> {
            let plan = result.unwrap_or_else(|errors| panic!("{}: {errors:?}", file.path)).plan;
            let workflow = |w: &model::plan::WorkflowPlan| {
                let mut jobs: Vec<String> = w
                    .jobs
                    .iter()
                    .map(|j| serde_json::to_string(&j.requires).expect("json") + &j.name)
                    .collect();
                jobs.sort();
                format!("{} {jobs:?}", w.name)
            };
            plan.workflows.iter().map(workflow).collect()
        };
        assert_eq!(names(before), names(after), "{}", file.path);
        packed += 1;
    }
    println!("{packed} configurations packed");
    assert!(packed > 50);
}

/// Any text that YAML can hold in quotes.
fn quoted() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ -~\\n\\t\u{e9}\u{4e16}]{0,60}")
        .expect("regex")
        .prop_filter("no tag", |text| !text.contains("<<"))
}

fn command_of(compiled: &Compiled) -> &str {
    let JobKind::Build { definition } = &compiled.plan.workflows[0].jobs[0].kind else { panic!("a build") };
    let Some(Step::Run(step)) = definition.steps.first() else { panic!("a run step") };
    &step.command
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_without_a_tag_is_not_changed(text in quoted()) {
        let quoted = serde_json::Value::from(text.as_str());
        let source = format!("version: 2.1\njobs:\n  build:\n    parameters: {{x: {{type: string, default: y}}}}\n    machine: true\n    steps: [{{run: {{name: n, command: {quoted}}}}}]\n");
        let compiled = run_with(None, &source).expect("valid");
        prop_assert_eq!(command_of(&compiled), text.as_str());
        // As an argument it goes through unchanged as well.
        let source = format!("version: 2.1\ncommands:\n  c:\n    parameters: {{x: {{type: string}}}}\n    steps: [{{run: {{name: n, command: << parameters.x >>}}}}]\njobs:\n  build:\n    machine: true\n    steps: [{{c: {{x: {quoted}}}}}]\n");
        let compiled = run_with(None, &source).expect("valid");
        prop_assert_eq!(command_of(&compiled), text.as_str());
    }

    #[test]
    fn a_matrix_is_the_product_without_what_is_excluded(
        sizes in prop::collection::vec(1usize..5, 1..4),
        excluded in prop::collection::vec(prop::collection::vec(0usize..5, 3), 0..5),
    ) {
        let name = |p: usize| format!("p{p}");
        let value = |p: usize, v: usize| format!("v{p}{v}");
        let mut parameters = String::new();
        let mut lists = String::new();
        for (p, size) in sizes.iter().enumerate() {
            parameters.push_str(&format!("      {}: {{type: string}}\n", name(p)));
            let list: Vec<String> = (0..*size).map(|v| value(p, v)).collect();
            lists.push_str(&format!("              {}: [{}]\n", name(p), list.join(", ")));
        }
        let mut exclude = String::new();
        for row in &excluded {
            let pairs: Vec<String> = (0..sizes.len()).map(|p| format!("{}: {}", name(p), value(p, row[p]))).collect();
            exclude.push_str(&format!("              - {{{}}}\n", pairs.join(", ")));
        }
        if !exclude.is_empty() {
            exclude.insert_str(0, "            exclude:\n");
        }
        let source = format!("version: 2.1\njobs:\n  j:\n    parameters:\n{parameters}    machine: true\n    steps: [checkout]\n  other: {{machine: true, steps: [checkout]}}\nworkflows:\n  w:\n    jobs:\n      - other\n      - j:\n          matrix:\n            parameters:\n{lists}{exclude}");
        let mut expected = vec![Vec::new()];
        for (p, size) in sizes.iter().enumerate() {
            expected = expected.iter().flat_map(|row: &Vec<usize>| (0..*size).map(|v| [row.clone(), vec![v]].concat())).collect();
            prop_assert_eq!(expected[0].len(), p + 1);
        }
        expected.retain(|row| !excluded.iter().any(|other| other[..sizes.len()] == row[..]));
        let mut names: Vec<String> = expected
            .iter()
            .map(|row| format!("j-{}", row.iter().enumerate().map(|(p, v)| value(p, *v)).collect::<Vec<_>>().join("-")))
            .collect();
        names.push("other".into());
        let compiled = run_with(None, &source).expect("valid");
        let mut found: Vec<String> = compiled.plan.workflows[0].jobs.iter().map(|job| job.name.clone()).collect();
        names.sort();
        found.sort();
        prop_assert_eq!(found, names);
    }
}
