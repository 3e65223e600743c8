//! Inputs that are made to cost more than they should.

use std::fmt::Write;

pub struct Case {
    pub name: &'static str,
    pub source: fn() -> String,
    /// One of these codes is the answer; none: it is harmless here, and no error.
    #[allow(dead_code, reason = "the benchmark asserts nothing")]
    pub codes: &'static [&'static str],
    /// Part of the message.
    #[allow(dead_code, reason = "the benchmark asserts nothing")]
    pub says: &'static str,
}

pub const CASES: &[Case] = &[
    Case { name: "a YAML bomb", source: bomb, codes: &["yaml-limit"], says: "values" },
    Case { name: "a file of 50 MiB", source: large, codes: &["yaml-limit"], says: "bytes long" },
    Case {
        name: "nesting of 100,000 lists",
        source: || nested("[", "]"),
        codes: &["yaml-limit", "yaml-syntax"],
        says: "",
    },
    Case {
        name: "nesting of 100,000 maps",
        source: || nested("{a: ", "}"),
        codes: &["yaml-limit", "yaml-syntax"],
        says: "",
    },
    Case {
        name: "nesting of 100,000 lists in lines",
        source: dashes,
        codes: &["yaml-limit", "yaml-syntax"],
        says: "",
    },
    Case {
        name: "a pattern that goes back and forth",
        source: || pattern("/^(a+)+$/"),
        codes: &[],
        says: "",
    },
    Case {
        name: "a pattern with references back",
        source: || pattern("/(a*)*\\\\1b/"),
        codes: &["bad-pattern"],
        says: "",
    },
    Case {
        name: "a pattern of a huge count",
        source: || pattern("/((a{1,1000}){1,1000}){1,1000}/"),
        codes: &["bad-pattern"],
        says: "",
    },
    Case { name: "commands that double", source: doubling, codes: &["size-limit"], says: "" },
    Case { name: "a matrix of a million", source: matrix, codes: &["bad-matrix", "size-limit"], says: "" },
];

fn bomb() -> String {
    let mut text = "version: 2.1\na: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in "bcdefghij".chars().zip("abcdefghi".chars()) {
        let list = vec![format!("*{last}"); 10].join(", ");
        let _ = writeln!(text, "{this}: &{this} [{list}]");
    }
    text
}

fn large() -> String {
    let mut text = String::with_capacity(51 << 20);
    text.push_str("version: 2.1\njobs:\n");
    while text.len() < 50 << 20 {
        text.push_str("  # a line of no use at all, again and again and again and again and again\n");
    }
    text
}

fn nested(open: &str, close: &str) -> String {
    format!("version: 2.1\nx: {}{}\n", open.repeat(100_000), close.repeat(100_000))
}

fn dashes() -> String {
    format!("version: 2.1\nx:\n{}a\n", "- ".repeat(100_000))
}

fn pattern(pattern: &str) -> String {
    format!(
        "version: 2.1\njobs:\n  build: {{machine: true, steps: [checkout]}}\nworkflows:\n  w:\n    jobs:\n      - build:\n          filters:\n            branches:\n              only: \"{pattern}\"\n"
    )
}

fn doubling() -> String {
    let mut text = "version: 2.1\ncommands:\n  c0: {steps: [checkout]}\n".to_owned();
    for level in 1..38 {
        let _ = writeln!(text, "  c{level}: {{steps: [c{0}, c{0}]}}", level - 1);
    }
    text + "jobs:\n  build: {machine: true, steps: [c37]}\n"
}

fn matrix() -> String {
    let list = (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let mut text = "version: 2.1\njobs:\n  build:\n    parameters:\n".to_owned();
    for p in ["a", "b", "c"] {
        let _ = writeln!(text, "      {p}: {{type: integer}}");
    }
    text.push_str("    machine: true\n    steps: [checkout]\nworkflows:\n  w:\n    jobs:\n      - build:\n          matrix:\n            parameters:\n");
    for p in ["a", "b", "c"] {
        let _ = writeln!(text, "              {p}: [{list}]");
    }
    text
}
