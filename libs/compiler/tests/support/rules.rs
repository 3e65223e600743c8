//! Rules of the language as cases: a configuration and what must come of it. `tests/rules/*.txt` holds them.
//!
//! ```text
//! === 4.2 a boolean parameter takes no text
//! --- config
//! version: 2.1
//! …
//! --- error argument-type 7 expected type: boolean
//! ```
//!
//! Before the expectations a case may set the scene: `orb REF` with its source, `branch NAME`, `tag NAME`,
//! `param NAME=JSON`, `inherited NAME=JSON`, `value NAME=JSON` (a pipeline value), `continuation`. Expectations:
//!
//! - `error CODE LINE [TEXT]`: the errors, all of them and in this order
//! - `warning CODE LINE [TEXT]`: one of the warnings
//! - `is PATH = VALUE` (`\n` for a line break): a value of the compiled form
//! - `no PATH`: the compiled form has no such value
//! - `workflows A, B` and `jobs WORKFLOW: A, B`: what runs, in this order
//! - `after WORKFLOW/JOB: A, B [failed, canceled]`: the edges of a job
//! - `valid`: nothing but that

use std::path::{Path, PathBuf};

/// One rule.
pub struct Case {
    /// Section of the language's reference, for example `4.2`.
    pub section: String,
    /// What is asserted, in words.
    pub name: String,
    /// Directives in order: word, rest of the line, lines below.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub parts: Vec<(String, String, String)>,
    /// Where it stands.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub place: String,
}

/// All cases, by file and in file order.
pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("tests/rules").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let file = path.file_name().and_then(|name| name.to_str()).expect("name").to_owned();
        let text = std::fs::read_to_string(&path).expect("rules");
        for (number, line) in text.lines().enumerate() {
            if let Some(title) = line.strip_prefix("=== ") {
                let (section, name) = title.split_once(' ').expect("a section and a name");
                let place = format!("{file}:{}", number + 1);
                cases.push(Case { section: section.into(), name: name.into(), parts: Vec::new(), place });
            } else if let Some(directive) = line.strip_prefix("--- ") {
                let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
                let case = cases.last_mut().expect("a title first");
                case.parts.push((word.into(), rest.into(), String::new()));
            } else if let Some((_, _, body)) = cases.last_mut().and_then(|case| case.parts.last_mut()) {
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    cases
}
