//! Configurations and what becomes of them. `UPDATE_GOLDEN=1` writes the expected files anew.

use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, compile};
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn values(source: &str) -> PipelineValues {
    // The first line may name a ref: `# tag: v1`, `# branch: dev`.
    let first = source.lines().next().unwrap_or_default();
    let tag = first.strip_prefix("# tag: ").map(str::to_owned);
    let branch = first.strip_prefix("# branch: ").unwrap_or("main").to_owned();
    PipelineValues {
        id: "5034460f-c7c4-4c43-9457-de07e2029e7b".into(),
        number: 7,
        project_slug: "gh/acme/app".into(),
        git_url: "https://git.invalid/acme/app".into(),
        branch: tag.is_none().then_some(branch),
        tag,
        revision: "0123456789abcdef0123456789abcdef01234567".into(),
        trigger_source: "webhook".into(),
        ..PipelineValues::default()
    }
}

fn run(source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    compile(&Input { values: values(source), ..Input::new("config.yml", source) })
}

fn lines(out: &mut String, list: &[Diagnostic]) {
    for diagnostic in list {
        let _ = writeln!(out, "{}", diagnostic.one_line());
        if let Some(hint) = &diagnostic.hint {
            let _ = writeln!(out, "  hint: {hint}");
        }
        for related in &diagnostic.related {
            let _ = writeln!(out, "  {}:{}: {}", related.line, related.column, related.message);
        }
    }
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("folder of tests")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn check(path: &Path, found: &str) -> Option<String> {
    let expected_path = path.with_extension("txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&expected_path, found).expect("write");
        return None;
    }
    let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
    (expected != found).then(|| format!("{}:\n--- expected\n{expected}\n--- found\n{found}", path.display()))
}

#[test]
fn good_configurations() {
    let mut wrong = Vec::new();
    for path in files("good") {
        let source = std::fs::read_to_string(&path).expect("read");
        let mut found = String::new();
        match run(&source) {
            Ok(compiled) => {
                lines(&mut found, &compiled.warnings);
                found.push_str(
                    compiled.processed.split("\n# Original config.yml file:\n").next().expect("text"),
                );
                found.push_str("\n---\n");
                found.push_str(&serde_json::to_string_pretty(&compiled.plan).expect("plan"));
                found.push('\n');
            }
            Err(errors) => {
                found.push_str("REFUSED\n");
                lines(&mut found, &errors);
            }
        }
        assert!(!found.starts_with("REFUSED"), "{}:\n{found}", path.display());
        wrong.extend(check(&path, &found));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_configurations() {
    let mut wrong = Vec::new();
    for path in files("bad") {
        let source = std::fs::read_to_string(&path).expect("read");
        let mut found = String::new();
        let Err(errors) = run(&source) else { panic!("{} was accepted", path.display()) };
        lines(&mut found, &errors);
        for error in &errors {
            assert!(error.line >= 1 && error.column >= 1);
            assert!(!error.render(&source, false).is_empty());
        }
        wrong.extend(check(&path, &found));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The compiled text is itself a configuration with the same plan.
#[test]
fn the_compiled_text_compiles_to_the_same_jobs() {
    for path in files("good") {
        let source = std::fs::read_to_string(&path).expect("read");
        let first = source.lines().next().filter(|line| line.starts_with('#')).unwrap_or_default();
        let compiled = run(&source).expect("good");
        let again = run(&format!("{first}\n{}", compiled.processed));
        match again {
            Ok(again) => {
                let strip = |c: &Compiled| {
                    let all = c.plan.workflows.iter().flat_map(|w| &w.jobs);
                    all.map(|j| serde_json::to_value((&j.kind, j.requires.len(), &j.contexts)).expect("job"))
                        .collect::<Vec<_>>()
                };
                assert_eq!(strip(&compiled), strip(&again), "{}", path.display());
            }
            Err(errors) => panic!("{}: {:?}\n{}", path.display(), errors, compiled.processed),
        }
    }
}

#[test]
fn parameters_of_the_trigger() {
    let source = "version: 2.1\nparameters:\n  deploy: {type: boolean, default: false}\njobs:\n  build:\n    machine: true\n    steps: [checkout]\nworkflows:\n  w:\n    when: << pipeline.parameters.deploy >>\n    jobs: [build]\n";
    let compile_with = |json: serde_json::Value| {
        let parameters = json.as_object().expect("object").clone();
        compile(&Input { parameters: &parameters, ..Input::new("c.yml", source) })
    };
    assert!(compile_with(serde_json::json!({})).expect("good").plan.workflows.is_empty());
    assert_eq!(compile_with(serde_json::json!({"deploy": true})).expect("good").plan.workflows.len(), 1);
    let unknown = compile_with(serde_json::json!({"deplyo": true})).expect_err("unknown");
    assert_eq!(unknown[0].code, "unexpected-argument");
    let wrong = compile_with(serde_json::json!({"deploy": "true"})).expect_err("type");
    assert_eq!(wrong[0].code, "argument-type");
}

#[test]
fn a_page_for_every_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/errors");
    for code in gantry_compiler::code::ALL {
        let page = std::fs::read_to_string(folder.join(format!("{code}.md")));
        let page = page.unwrap_or_else(|_| panic!("docs/reference/errors/{code}.md is missing"));
        assert!(page.starts_with(&format!("# {code}\n")), "{code}.md starts with its code");
    }
    for entry in std::fs::read_dir(&folder).expect("folder of pages") {
        let path = entry.expect("entry").path();
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("name").to_owned();
        assert!(
            stem == "README" || gantry_compiler::code::ALL.contains(&stem.as_str()),
            "{stem}.md explains no code"
        );
    }
}

#[test]
fn limits() {
    let laughs = {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (this, last) in "bcdefghij".chars().zip("abcdefghi".chars()) {
            let list = vec![format!("*{last}"); 10].join(", ");
            let _ = writeln!(text, "{this}: &{this} [{list}]");
        }
        text + "version: 2.1\n"
    };
    let deep = format!("version: 2.1\nx: {}{}\n", "[".repeat(200), "]".repeat(200));
    let large = format!("version: 2.1\nx: \"{}\"\n", "y".repeat(4 << 20));
    for source in [laughs, deep, large] {
        let errors = run(&source).expect_err("too large");
        assert!(["yaml-limit", "yaml-syntax"].contains(&errors[0].code), "{:?}", errors[0]);
    }
    // Commands that call each other twice, forty levels deep.
    let mut text = "version: 2.1\ncommands:\n  c0: {steps: [checkout]}\n".to_owned();
    for level in 1..38 {
        let _ = writeln!(text, "  c{level}: {{steps: [c{0}, c{0}]}}", level - 1);
    }
    text.push_str("jobs:\n  build: {machine: true, steps: [c37]}\n");
    let errors = run(&text).expect_err("too large");
    assert_eq!(errors[0].code, "size-limit");
    // A text that doubles itself at each level.
    let mut text = "version: 2.1\ncommands:\n  c0: {parameters: {x: {type: string}}, steps: [{run: << parameters.x >>}]}\n".to_owned();
    for level in 1..38 {
        let _ = writeln!(
            text,
            "  c{level}: {{parameters: {{x: {{type: string}}}}, steps: [c{}: {{x: << parameters.x >><< parameters.x >>}}]}}",
            level - 1
        );
    }
    text.push_str("jobs:\n  build: {machine: true, steps: [c37: {x: yyyyyyyy}]}\n");
    let errors = run(&text).expect_err("too large");
    assert_eq!(errors[0].code, "size-limit");
}

#[test]
fn a_finding_shows_its_lines() {
    let source = "version: 2.1\njobs:\n  build:\n    machine: true\n    steps:\n      - chekout\n";
    let errors = run(source).expect_err("bad");
    let shown = errors[0].render(source, false);
    let expected = "error[unknown-command]: Cannot find a definition for command named chekout
 --> config.yml:6:9
  |
6 |       - chekout
  |         ^^^^^^^
  |
  = note: Error calling job: 'build' (config.yml:2:1)
  = help: did you mean `checkout`?";
    assert_eq!(shown, expected);
    assert!(errors[0].render(source, true).contains('\u{1b}'));
    // A text that is not the one that was compiled must do no harm.
    for other in ["", "é", "a\n\n"] {
        errors[0].render(other, false);
    }
    let json = serde_json::to_value(&errors[0]).expect("json");
    assert_eq!(json["code"], "unknown-command");
    assert_eq!(json["severity"], "error");
    assert_eq!((&json["line"], &json["column"], &json["end_column"]), (&6.into(), &9.into(), &16.into()));
}
