//! The published samples of the compiled form (config-language §22, §23): each file beside what becomes of it.

use gantry_compiler::{Input, PipelineValues, compile, data};

fn compiled(source: &str) -> String {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    match compile(&Input { values, ..Input::new("config.yml", source) }) {
        Ok(compiled) => compiled.processed,
        Err(errors) => panic!("{}", errors.iter().map(|e| e.render(source, false)).collect::<String>()),
    }
}

fn check(source: &str, expected: &str) {
    let found = compiled(source);
    let read = |text: &str| data("sample", text).expect("YAML");
    assert_eq!(read(&found), read(expected), "{found}");
    let original: Vec<&str> = found.split("\n# Original config.yml file:\n").collect();
    let shown: String = source.lines().map(|line| format!("# {line}\n")).collect();
    assert_eq!(original[1..], [shown.as_str()], "the source stands behind the compiled text");
}

#[test]
fn orbs_executors_conditions_and_names() {
    check(include_str!("samples/first.yml"), include_str!("samples/first.compiled.yml"));
}

#[test]
fn matrices_statuses_sections_and_numbers() {
    check(include_str!("samples/second.yml"), include_str!("samples/second.compiled.yml"));
}

/// What is compiled once more says the same.
#[test]
fn the_compiled_form_stays_as_it_is() {
    for source in [include_str!("samples/first.yml"), include_str!("samples/second.yml")] {
        let once = compiled(source);
        let body = |text: &str| data("sample", text).expect("YAML");
        assert_eq!(body(&compiled(&once)), body(&once));
    }
}
