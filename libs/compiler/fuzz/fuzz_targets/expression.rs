//! Expressions: alone, as a condition and as a filter.
#![no_main]

use gantry_compiler::{Fact, Input, compile, restriction_holds};

libfuzzer_sys::fuzz_target!(|expression: &str| {
    let lookup = |name: &str| match name {
        "pipeline.git.branch" => Some(Fact::Text("main".to_owned())),
        "pipeline.number" => Some(Fact::Int(7)),
        "pipeline.git.branch.is_default" => Some(Fact::Bool(true)),
        _ => None,
    };
    if let Err(problem) = restriction_holds(expression, &lookup) {
        assert!(!problem.is_empty(), "refused without a reason");
    }
    let text = serde_json::Value::from(expression);
    let source = format!(
        "version: 2.1\njobs: {{a: {{machine: true, steps: [{{run: {text}}}]}}}}\nworkflows:\n  w:\n    when: {text}\n    \
         jobs:\n      - a: {{filters: {text}}}\n"
    );
    if let Err(errors) = compile(&Input::new("config.yml", &source)) {
        errors.iter().for_each(|error| _ = error.render(&source, false));
    }
});
