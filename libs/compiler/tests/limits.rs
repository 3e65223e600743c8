//! Every limit (config-language §28, security §5.2): the last that is accepted, the first that is not, and the
//! message that names it.

use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, compile};
use std::fmt::Write;

fn run(source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    compile(&Input { values, ..Input::new("config.yml", source) })
}

const JOB: &str = "version: 2.1\njobs:\n  j: {parameters: {n: {type: integer, default: 1}}, machine: true, steps: [checkout]}\n";

fn list(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

/// `make` is good with `limit` things and bad with one more; the finding has this code and names the number.
#[track_caller]
fn limit(limit: usize, code: &str, make: impl Fn(usize) -> String) {
    if let Err(errors) = run(&make(limit)) {
        panic!("{limit} is accepted: {}", errors[0].one_line());
    }
    let errors = run(&make(limit + 1)).expect_err("one more is refused");
    assert_eq!(errors[0].code, code, "{}", errors[0].one_line());
    assert!(errors[0].message.contains(&limit.to_string()), "{}", errors[0].message);
}

#[test]
fn of_workflows() {
    limit(100, "size-limit", |n| {
        let workflows: String = (0..n).map(|w| format!("  w{w}: {{jobs: [j]}}\n")).collect();
        format!("{JOB}workflows:\n{workflows}")
    });
    limit(1000, "size-limit", |n| {
        format!("{JOB}workflows: {{w: {{jobs: [{}]}}}}\n", list(n, |_| "j".into()))
    });
    limit(1000, "bad-matrix", |n| {
        format!(
            "{JOB}workflows: {{w: {{jobs: [j: {{matrix: {{parameters: {{n: [{}]}}}}}}]}}}}\n",
            list(n, |i| i.to_string())
        )
    });
    limit(100, "size-limit", |n| {
        format!("{JOB}workflows: {{w: {{jobs: [j: {{context: [{}]}}]}}}}\n", list(n, |i| format!("c{i}")))
    });
    limit(100, "size-limit", |n| {
        let only = list(n, |i| format!("b{i}"));
        format!("{JOB}workflows: {{w: {{jobs: [j: {{filters: {{branches: {{ignore: [{only}]}}}}}}]}}}}\n")
    });
    limit(512, "invalid-value", |n| {
        format!("{JOB}workflows: {{w: {{jobs: [j: {{serial-group: {}}}]}}}}\n", "k".repeat(n))
    });
    limit(128, "invalid-name", |n| {
        format!("{JOB}workflows: {{w: {{jobs: [j: {{name: {}}}]}}}}\n", "n".repeat(n))
    });
    limit(5, "wrong-type", |n| format!("{JOB}workflows: {{w: {{max_auto_reruns: {n}, jobs: [j]}}}}\n"));
}

#[test]
fn a_million_combinations_are_counted_and_not_built() {
    let thousand = list(1000, |i| i.to_string());
    let source = format!(
        "{JOB}workflows: {{w: {{jobs: [j: {{matrix: {{parameters: {{n: [{thousand}], m: [{thousand}]}}}}}}]}}}}\n"
    );
    let errors = run(&source).expect_err("too many");
    assert!(errors[0].message.contains("1000000 combinations"), "{}", errors[0].message);
}

#[test]
fn of_jobs() {
    let job = |keys: &str| format!("version: 2.1\njobs:\n  build: {{machine: true, {keys}}}\n");
    limit(512, "wrong-type", |n| job(&format!("parallelism: {n}, steps: [checkout]")));
    limit(500, "size-limit", |n| job(&format!("steps: [{}]", list(n, |_| "checkout".into()))));
    limit(256 << 10, "yaml-limit", |n| job(&format!("steps: [{{run: {}}}]", "c".repeat(n))));
    limit(120 << 10, "size-limit", |n| {
        job(&format!("steps: [checkout], environment: {{A: {}}}", "v".repeat(n)))
    });
    limit(1000, "size-limit", |n| {
        job(&format!("steps: [checkout], environment: {{{}}}", list(n, |i| format!("V{i}: x"))))
    });
    limit(5, "wrong-type", |n| job(&format!("steps: [{{run: {{command: a, max_auto_reruns: {n}}}}}]")));
    limit(10, "invalid-value", |n| {
        job(&format!("steps: [{{run: {{command: a, max_auto_reruns: 1, auto_rerun_delay: {n}m}}}}]"))
    });
}

#[test]
fn of_yaml() {
    limit(1000, "yaml-limit", |n| {
        format!("{JOB}x: &x y\nz: [{}]\nworkflows: {{w: {{jobs: [j]}}}}\n", list(n, |_| "*x".into()))
    });
    limit(1024, "yaml-limit", |n| {
        format!("{JOB}? {}\n: 1\nworkflows: {{w: {{jobs: [j]}}}}\n", "k".repeat(n))
    });
    limit(4 << 20, "yaml-limit", |n| {
        let start = format!("{JOB}workflows: {{w: {{jobs: [j]}}}}\n#");
        format!("{start}{}\n", "c".repeat(n - start.len() - 1))
    });
}

#[test]
fn of_conditions_and_patterns() {
    let filter = |pattern: &str| {
        format!("{JOB}workflows: {{w: {{jobs: [j: {{filters: {{branches: {{ignore: /{pattern}/}}}}}}]}}}}\n")
    };
    limit(1024, "bad-pattern", |n| filter(&"a".repeat(n)));
    limit(256, "bad-expression", |n| {
        format!(
            "{JOB}workflows: {{w: {{when: 'pipeline.git.branch matches /{}|main/', jobs: [j]}}}}\n",
            "a".repeat(n - 5)
        )
    });
    let slow = filter("(?=m?)(a|aa|m|ma|mai|main)+(?<!x)Q")
        .replace("filters:", "name: << pipeline.git.branch >>, filters:");
    assert!(run(&slow).is_ok() || run(&slow).is_err_and(|e| e[0].code == "bad-pattern"));
}

#[test]
fn of_parameters() {
    let source = |count: usize| {
        let mut text = "version: 2.1\nparameters:\n".to_owned();
        for n in 0..count {
            let _ = writeln!(text, "  p{n}: {{type: string, default: ''}}");
        }
        text + "jobs: {build: {machine: true, steps: [checkout]}}\n"
    };
    let given = |count: usize, length: usize| {
        let parameters: serde_json::Map<_, _> =
            (0..count).map(|n| (format!("p{n}"), "é".repeat(length).into())).collect();
        let text = source(count);
        let found = compile(&Input { parameters: &parameters, ..Input::new("config.yml", &text) });
        found.map(|c| c.parameters.len()).map_err(|errors| errors[0].message.clone())
    };
    assert_eq!(given(100, 512), Ok(100));
    assert!(given(101, 1).expect_err("too many").contains("at most 100"));
    assert!(given(1, 513).expect_err("too long").contains("at most 512"));
}
