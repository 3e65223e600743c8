//! A last look at the findings of a compile: what only follows from another finding is left out, and what a
//! finding alone could not know is said as its hint.

use crate::diagnostics::{Diagnostic, Severity, Span, code, suggest};

/// Keys of an invocation of a job beside its arguments.
const INVOCATION_KEYS: &[&str] =
    &["name", "requires", "context", "type", "filters", "matrix", "pre-steps", "post-steps", "serial-group"];

/// What becomes of a finding.
enum Verdict {
    Stays,
    /// It follows from an error.
    Goes,
    /// Its cause is a warning elsewhere: it is told there.
    MovesTo(usize),
}

/// The findings without those that follow from others, with better hints.
pub(crate) fn review(found: Vec<(Span, Diagnostic)>) -> Vec<(Span, Diagnostic)> {
    let verdicts: Vec<Verdict> = (0..found.len()).map(|index| verdict(&found, index)).collect();
    let mut kept = Vec::with_capacity(found.len());
    for (index, verdict) in verdicts.into_iter().enumerate() {
        let (mut span, mut finding) = found[index].clone();
        match verdict {
            Verdict::Goes => continue,
            Verdict::Stays => {}
            Verdict::MovesTo(cause) => {
                let (at, cause) = &found[cause];
                span = *at;
                finding.hint.clone_from(&cause.hint);
                (finding.line, finding.column) = (cause.line, cause.column);
                (finding.end_line, finding.end_column) = (cause.end_line, cause.end_column);
            }
        }
        if finding.hint.is_none() {
            finding.hint = hint(span, &finding);
        }
        finding.fix = crate::fix::of(span, &finding);
        kept.push((span, finding));
    }
    kept.sort_by_key(|(span, _)| *span);
    kept
}

/// Whether another finding is the cause of this one.
fn verdict(found: &[(Span, Diagnostic)], index: usize) -> Verdict {
    let (span, finding) = &found[index];
    if finding.severity == Severity::Warning {
        return Verdict::Stays;
    }
    let others = || found.iter().enumerate().filter(|(other, _)| *other != index);
    // A parameter of a matrix is an argument at two places of its line.
    let again = |(other, (at, earlier)): (usize, &(Span, Diagnostic))| {
        other < index
            && at.file == span.file
            && (earlier.code, earlier.line, &earlier.message)
                == (finding.code, finding.line, &finding.message)
    };
    if finding.code == code::UNEXPECTED_ARGUMENT && others().any(again) {
        return Verdict::Goes;
    }
    let cause = match finding.code {
        // The key is there, misspelt.
        code::MISSING_KEY | code::NO_EXECUTOR => {
            let bracketed = finding.message.split(['[', ']']).nth(1);
            let keys = match finding.code {
                code::MISSING_KEY => bracketed.into_iter().collect(),
                _ => vec!["docker", "machine", "macos", "executor"],
            };
            let end = element_end(&finding.text.0, span.start as usize);
            others().find(|(_, (at, other))| {
                let inside = at.file == span.file && at.start >= span.start && (at.start as usize) < end;
                let meant = meant(other);
                let own = finding.text.0.get(span.start as usize..end).unwrap_or_default();
                // The executor that a job names has its kind under a wrong name.
                let of_executor = finding.code == code::NO_EXECUTOR
                    && other
                        .message
                        .split_once("in the executor `")
                        .is_some_and(|(_, name)| own.contains(name.trim_end_matches('`')));
                (inside || of_executor)
                    && other.code == code::UNKNOWN_KEY
                    && meant.is_some_and(|word| keys.contains(&word))
            })
        }
        // Its declaration is wrong.
        code::UNEXPECTED_ARGUMENT | code::UNDECLARED_PARAMETER => {
            let name = finding.message.rsplit(": ").next().unwrap_or_default().split([':', ',']).next();
            others().find(|(_, (at, other))| {
                let wrong = other.code == code::PARAMETER_DECLARATION;
                let ignored = other.code == code::UNKNOWN_KEY && meant(other) == Some("parameters");
                name.is_some_and(|name| {
                    wrong && declares(at, other, name) || ignored && declares_below(at, other, name)
                })
            })
        }
        // Its default is there, misspelt.
        code::MISSING_ARGUMENT => {
            let names = finding.message.rsplit(": ").next().unwrap_or_default();
            others().find(|(_, (at, other))| {
                other.code == code::UNKNOWN_KEY
                    && meant(other) == Some("default")
                    && names.split(", ").any(|name| declares(at, other, name))
            })
        }
        // It stands in the place of a key that is missing, and that is told there.
        code::UNKNOWN_KEY => others().find(|(_, (at, other))| at == span && other.code == code::MISSING_KEY),
        // The whole section is there, under a name that is wrong: the first finding is told at it.
        code::UNKNOWN_JOB
        | code::UNKNOWN_COMMAND
        | code::UNKNOWN_EXECUTOR
        | code::UNKNOWN_ORB
        | code::UNKNOWN_PIPELINE_VALUE
            if section_of(finding).is_some_and(|section| misspelt_section(found, section).is_some()) =>
        {
            let section = section_of(finding);
            let same = |(_, other): &(Span, Diagnostic)| section_of(other) == section;
            let misspelt = section.and_then(|section| misspelt_section(found, section));
            if found[..index].iter().any(same) {
                return Verdict::Goes;
            }
            return misspelt.map_or(Verdict::Stays, Verdict::MovesTo);
        }
        // The job that is required is in the workflow, under a name that is wrong.
        code::UNKNOWN_REQUIRES => meant(finding).and_then(|word| {
            others().find(|(_, (_, other))| {
                other.code == code::UNKNOWN_JOB && other.message.ends_with(&format!("named {word}"))
            })
        }),
        _ => None,
    };
    match cause {
        None => Verdict::Stays,
        Some((_, (_, other))) if other.severity == Severity::Error => Verdict::Goes,
        Some((cause, _)) => Verdict::MovesTo(cause),
    }
}

/// The word of a `did you mean`.
fn meant(finding: &Diagnostic) -> Option<&str> {
    finding.hint.as_deref()?.strip_prefix("did you mean `")?.strip_suffix("`?")
}

/// The section of the file in which that should be which was not found.
fn section_of(finding: &Diagnostic) -> Option<&'static str> {
    match finding.code {
        code::UNKNOWN_JOB if finding.message.contains("a definition for") => Some("jobs"),
        code::UNKNOWN_JOB => Some("workflows"),
        code::UNKNOWN_COMMAND => Some("commands"),
        code::UNKNOWN_EXECUTOR => Some("executors"),
        code::UNKNOWN_ORB => Some("orbs"),
        code::UNKNOWN_PIPELINE_VALUE if finding.message.contains("pipeline.parameters.") => {
            Some("parameters")
        }
        _ => None,
    }
}

/// The finding that tells of a key of the top level which was meant to be this one.
fn misspelt_section(found: &[(Span, Diagnostic)], section: &str) -> Option<usize> {
    found.iter().position(|(_, other)| {
        other.code == code::UNKNOWN_KEY
            && other.message.ends_with("is not a key of the configuration and is ignored")
            && meant(other) == Some(section)
    })
}

/// Whether a name is declared below the key of a finding.
fn declares_below(at: &Span, finding: &Diagnostic, name: &str) -> bool {
    let (text, start) = (&finding.text.0, at.start as usize);
    let below = text.get(start..element_end(text, start)).unwrap_or_default();
    below.split(['\n', '{', ',']).any(|part| {
        part.trim_start().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(':'))
    })
}

/// Whether a finding stands in the declaration of a parameter.
fn declares(at: &Span, finding: &Diagnostic, name: &str) -> bool {
    let text = &finding.text.0;
    let before = text.get(..at.start as usize).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let own = text[line_start..].lines().next().unwrap_or_default();
    let is_key = |line: &str| {
        line.trim_start().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    // In one line with its name, or below it.
    is_key(own)
        || own.contains(&format!("{name}: {{"))
        || before[..line_start]
            .lines()
            .rev()
            .take(8)
            .find(|line| indent(line) < indent(own))
            .is_some_and(is_key)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The end of what is indented below the line of `start`.
fn element_end(text: &str, start: usize) -> usize {
    let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |i| i + 1);
    let Some(rest) = text.get(line_start..) else { return start };
    let mut end = line_start;
    let mut own = None;
    for line in rest.split_inclusive('\n') {
        let blank = line.trim().is_empty() || line.trim_start().starts_with('#');
        match own {
            None => own = Some(indent(line)),
            Some(own) if !blank && indent(line) <= own => break,
            Some(_) => {}
        }
        end += line.len();
    }
    end
}

/// What to do, for findings that came without it.
fn hint(span: Span, finding: &Diagnostic) -> Option<String> {
    let source = finding.text.0.get(span.start as usize..span.end as usize).unwrap_or_default();
    match finding.code {
        code::WRONG_TYPE | code::INVALID_VALUE if is_unclosed(source) => {
            Some("close the reference: write `>>` behind its name".to_owned())
        }
        code::BAD_EXPRESSION if finding.message.contains("the character `'`") => {
            Some("write texts in double quotes: `\"main\"`".to_owned())
        }
        code::DUPLICATE_KEY => {
            let first = finding.related.last()?.line;
            Some(format!("keep one of the two: the other one is in line {first}"))
        }
        code::WRONG_TYPE | code::STEP_SHAPE | code::UNKNOWN_COMMAND | code::UNKNOWN_JOB => {
            missing_colon(source)
        }
        code::UNEXPECTED_ARGUMENT => {
            let in_job = finding.related.first().is_some_and(|r| r.message.starts_with("Error calling job"));
            let name = finding.message.rsplit(": ").next()?;
            match name {
                "branches" | "tags" => return Some(format!("write `{name}:` below `filters:`")),
                "only" | "ignore" => {
                    return Some(format!("write `{name}:` below `filters:` and `branches:` or `tags:`"));
                }
                _ => {}
            }
            in_job.then(|| suggest(name, INVOCATION_KEYS.iter().copied())).flatten()
        }
        _ => None,
    }
}

/// `<< parameters.x` without its end.
fn is_unclosed(source: &str) -> bool {
    let Some((_, rest)) = source.split_once("<<") else { return false };
    let rest = rest.trim_start();
    !source.contains(">>")
        && ["parameters.", "pipeline.", "matrix."].iter().any(|name| rest.starts_with(name))
}

/// A text of several lines whose first is one word was meant to be a key.
fn missing_colon(source: &str) -> Option<String> {
    let (first, rest) = source.split_once('\n')?;
    let word = first.trim();
    let is_word =
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    (is_word && !rest.trim().is_empty()).then(|| format!("a `:` is missing behind `{word}`"))
}

#[cfg(test)]
mod tests {
    use crate::{Input, compile};

    fn findings(source: &str) -> Vec<(usize, &'static str, Option<String>)> {
        let errors = compile(&Input::new("c.yml", source)).expect_err("broken");
        errors.into_iter().map(|error| (error.line, error.code, error.hint)).collect()
    }

    #[test]
    fn a_misspelt_key_is_not_missing_as_well() {
        let source = "version: 2.1\njobs:\n  build:\n    dokcer: [{image: a}]\n    steps:\n      - run:\n          comand: x\n";
        let expected = [
            (4, "unknown-key", Some("did you mean `docker`?".to_owned())),
            (7, "unknown-key", Some("did you mean `command`?".to_owned())),
        ];
        assert_eq!(findings(source), expected);
        let missing = "version: 2.1\njobs:\n  build:\n    machine: true\n    steps: [{run: {name: x}}]\n";
        assert_eq!(findings(missing)[0].1, "missing-key");
    }

    #[test]
    fn a_broken_declaration_is_the_only_finding() {
        let source = "version: 2.1\ncommands:\n  c:\n    parameters:\n      x:\n        type: strng\n    steps: [checkout]\njobs:\n  build:\n    machine: true\n    steps: [{c: {x: a}}]\n";
        assert_eq!(findings(source).len(), 1, "{:?}", findings(source));
        assert_eq!(findings(source)[0].0, 6);
    }

    #[test]
    fn a_text_that_was_meant_to_be_a_key() {
        let source = "version: 2.1\njobs:\n  build:\n    machine: true\n    steps: [checkout]\nworkflows:\n  w:\n    jobs\n      - build\n";
        assert_eq!(findings(source)[0].2.as_deref(), Some("a `:` is missing behind `jobs`"));
    }
}
