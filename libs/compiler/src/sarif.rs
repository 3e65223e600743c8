//! Findings in the forms that other programs read: SARIF 2.1.0 and workflow annotations.

use crate::diagnostics::{Diagnostic, Severity};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// One SARIF 2.1.0 log of all findings. `version` is this program's.
pub fn sarif(findings: &[Diagnostic], version: &str) -> Value {
    let codes: BTreeSet<&str> = findings.iter().map(|finding| finding.code).collect();
    let rules: Vec<Value> = codes
        .iter()
        .map(|code| json!({ "id": code, "helpUri": format!("docs/reference/errors/{code}.md") }))
        .collect();
    let results: Vec<Value> = findings.iter().map(result).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "gantry", "version": version, "rules": rules } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(finding: &Diagnostic) -> Value {
    let level = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let text = match &finding.hint {
        Some(hint) => format!("{} ({hint})", finding.message),
        None => finding.message.clone(),
    };
    let related: Vec<Value> = finding
        .related
        .iter()
        .map(|related| {
            json!({
                "message": { "text": related.message },
                "physicalLocation": {
                    "artifactLocation": { "uri": uri(&related.file) },
                    "region": { "startLine": related.line, "startColumn": related.column },
                },
            })
        })
        .collect();
    json!({
        "ruleId": finding.code,
        "level": level,
        "message": { "text": text },
        "locations": [{
            "physicalLocation": {
                "artifactLocation": { "uri": uri(&finding.file) },
                "region": {
                    "startLine": finding.line,
                    "startColumn": finding.column,
                    "endLine": finding.end_line,
                    "endColumn": finding.end_column,
                },
            },
        }],
        "relatedLocations": related,
    })
}

/// A path as the relative reference that SARIF wants: blanks and the like escaped.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'@' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// One line that annotates a place of a file in the way of GitHub's workflow commands.
pub fn annotation(finding: &Diagnostic) -> String {
    let level = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let escape = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let mut message = finding.message.clone();
    if let Some(hint) = &finding.hint {
        message.push('\n');
        message.push_str(hint);
    }
    format!(
        "::{level} file={},line={},endLine={},col={},endColumn={},title={}::{}",
        property(&finding.file),
        finding.line,
        finding.end_line,
        finding.column,
        finding.end_column,
        property(finding.code),
        escape(&message)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::{Related, SourceText, code};

    fn finding() -> Diagnostic {
        Diagnostic {
            code: code::UNKNOWN_JOB,
            severity: Severity::Error,
            message: "no job\n100 %".into(),
            file: "a b/c.yml".into(),
            line: 3,
            column: 5,
            end_line: 3,
            end_column: 9,
            text: SourceText::default(),
            hint: Some("did you mean `x`?".into()),
            fix: None,
            related: vec![Related {
                message: "here".into(),
                file: "c.yml".into(),
                line: 1,
                column: 2,
                text: SourceText::default(),
            }],
        }
    }

    #[test]
    fn a_log_names_rule_place_and_related_places() {
        let log = sarif(&[finding()], "1.2.3");
        assert_eq!(log["version"], "2.1.0");
        assert_eq!(log["runs"][0]["tool"]["driver"]["rules"][0]["id"], "unknown-job");
        let result = &log["runs"][0]["results"][0];
        assert_eq!(result["ruleId"], "unknown-job");
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a%20b/c.yml");
        assert_eq!(place["region"]["startLine"], 3);
        assert_eq!(result["relatedLocations"][0]["physicalLocation"]["region"]["startLine"], 1);
    }

    #[test]
    fn an_annotation_is_one_line() {
        let line = annotation(&finding());
        let expected = "::error file=a b/c.yml,line=3,endLine=3,col=5,endColumn=9,title=unknown-job::no job%0A100 %25%0Adid you mean `x`?";
        assert_eq!(line, expected);
    }
}
