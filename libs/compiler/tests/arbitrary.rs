//! Whatever the text is, the compiler answers.

use gantry_compiler::{Input, PipelineValues, compile};
use proptest::prelude::*;

fn feed(source: &str) {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    match compile(&Input { values, ..Input::new("config.yml", source) }) {
        Ok(compiled) => {
            for warning in compiled.warnings {
                warning.render(source, false);
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                error.render(source, true);
                error.one_line();
            }
        }
    }
}

/// Words of the language, so that arbitrary text gets past the first check.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("- "),
        Just(": "),
        Just("\n"),
        Just("\n  "),
        Just("\n    "),
        Just("\n      "),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(", "),
        Just("&a "),
        Just("*a"),
        Just("<<: *a"),
        Just("<< parameters.x >>"),
        Just("<<#parameters.x>>"),
        Just("<</parameters.x>>"),
        Just("\\<<"),
        Just("<< pipeline.number == 1 >>"),
        Just("version: 2.1\n"),
        Just("jobs:"),
        Just("build:"),
        Just("steps:"),
        Just("run:"),
        Just("checkout"),
        Just("machine: true"),
        Just("docker:"),
        Just("image: a"),
        Just("workflows:"),
        Just("w:"),
        Just("requires:"),
        Just("filters:"),
        Just("branches:"),
        Just("only:"),
        Just("/.*/"),
        Just("when:"),
        Just("condition:"),
        Just("equal:"),
        Just("not:"),
        Just("matrix:"),
        Just("parameters:"),
        Just("x:"),
        Just("type: string"),
        Just("default: y"),
        Just("executor:"),
        Just("commands:"),
        Just("orbs:"),
        Just("|\n  "),
        Just("\""),
        Just("'"),
        Just("é"),
        Just("\t"),
        Just("#"),
        Just("---\n"),
        Just("!!str "),
        Just("? "),
        Just("%"),
        Just("\0"),
        Just("\r"),
    ]
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text(text in any::<String>()) {
        feed(&text);
        feed(&format!("version: 2.1\n{text}"));
    }

    #[test]
    fn arbitrary_words(words in prop::collection::vec(word(), 0..60)) {
        feed(&words.concat());
        feed(&format!("version: 2.1\n{}", words.concat()));
    }

    /// A good configuration with a piece cut out or doubled.
    #[test]
    fn damaged_configuration(from in 0usize..2000, length in 0usize..60, word in word()) {
        let good = include_str!("good/language.yml");
        let boundary = |mut at: usize| { at = at.min(good.len()); while !good.is_char_boundary(at) { at -= 1; } at };
        let (a, b) = (boundary(from), boundary(from + length));
        feed(&format!("{}{}", &good[..a], &good[b..]));
        feed(&format!("{}{word}{}", &good[..b], &good[a..]));
    }

    #[test]
    fn arbitrary_interpolation(text in "[<>\\\\#^/ a-z.\"=()!]{0,40}") {
        let text = serde_json::Value::from(text.as_str());
        feed(&format!("version: 2.1\njobs:\n  build:\n    parameters: {{a: {{type: string, default: b}}}}\n    machine: true\n    steps: [{{run: {text}}}]\nworkflows:\n  w:\n    when: {text}\n    jobs: [build: {{filters: {text}}}]\n"));
    }
}
