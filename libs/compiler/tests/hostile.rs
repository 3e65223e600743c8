//! Files that are made to hurt: each ends with an error that names the limit, or with a plan.

use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, compile};

#[path = "support/hostile.rs"]
mod hostile;

fn run(source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let branch = Some(format!("{}!", "a".repeat(40)));
    let values = PipelineValues { branch, ..PipelineValues::default() };
    compile(&Input { values, ..Input::new("config.yml", source) })
}

/// config-language §28
#[test]
fn each_hostile_file_is_refused_with_the_limit_that_it_breaks() {
    for case in hostile::CASES {
        let source = (case.source)();
        if case.codes.is_empty() {
            assert!(run(&source).is_ok(), "{}", case.name);
            continue;
        }
        let errors = run(&source).err().unwrap_or_else(|| panic!("{} was accepted", case.name));
        let first = &errors[0];
        assert!(case.codes.contains(&first.code), "{}: {}", case.name, first.one_line());
        assert!(first.message.contains(case.says), "{}: {}", case.name, first.one_line());
        // The message does not repeat the file.
        assert!(first.message.len() < 2000, "{}: {} bytes", case.name, first.message.len());
        assert!(!first.render(&source, false).is_empty());
    }
}
