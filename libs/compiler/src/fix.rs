//! What can be mended without asking: findings whose hint leaves no choice.

use crate::diagnostics::{Diagnostic, Severity, Span, code};
use crate::input::Input;
use serde::Serialize;

/// Times that a file is compiled again: mending its YAML shows what else is wrong with it.
const MAX_ROUNDS: usize = 20;

/// What to write instead of a part of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// In bytes of the file.
    pub start: usize,
    /// In bytes of the file; the first one behind the part.
    pub end: usize,
    /// The text.
    pub replacement: String,
}

/// A file as far as it could be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Its text.
    pub text: String,
    /// How many fixes were made.
    pub count: usize,
}

/// Mends a file until nothing more can be mended. A file that is mended already stays as it is.
pub fn fix(input: &Input<'_>) -> Fixed {
    let mut fixed = Fixed { text: input.source.to_owned(), count: 0 };
    for _ in 0..MAX_ROUNDS {
        let Err(errors) = crate::compile(&Input { source: &fixed.text, ..input.clone() }) else { break };
        let mut fixes: Vec<Fix> = errors.into_iter().filter_map(|error| error.fix).collect();
        fixes.sort_by_key(|fix| (fix.start, fix.end));
        fixes.dedup();
        // Of two that meet, the first one may be the cause of the other.
        let mut end = 0;
        fixes.retain(|fix| {
            let apart = fix.start >= end;
            end = end.max(fix.end + 1);
            apart
        });
        if fixes.is_empty() {
            break;
        }
        fixed.count += fixes.len();
        for Fix { start, end, replacement } in fixes.into_iter().rev() {
            fixed.text.replace_range(start..end, &replacement);
        }
    }
    fixed
}

/// The fix of a finding, if its hint says exactly what to write. Orbs are not the author's to change.
pub(crate) fn of(span: Span, finding: &Diagnostic) -> Option<Fix> {
    let hint = finding.hint.as_deref().filter(|_| span.file == 0 && finding.severity == Severity::Error)?;
    let (start, source) = (span.start as usize, finding.text.0.get(span.start as usize..span.end as usize)?);
    let insert = |at: usize, text: &str| Some(Fix { start: at, end: at, replacement: text.to_owned() });
    if let Some(meant) = hint.strip_prefix("did you mean `").and_then(|rest| rest.strip_suffix("`?")) {
        let (from, to) = misspelt(source, meant)?;
        return Some(Fix { start: start + from, end: start + to, replacement: meant.to_owned() });
    }
    if let Some(word) = hint.strip_prefix("a `:` is missing behind `").and_then(|rest| rest.strip_suffix('`'))
    {
        let at = source.find(word)?;
        return insert(start + at + word.len(), ":");
    }
    if hint.starts_with("close the quote: ") && !source.contains('#') {
        return insert(start + source.trim_end().len(), &source[..1]);
    }
    if hint.starts_with("close the reference: ") {
        let open = source.find("<<")?;
        let name = &source[open + 2..];
        let blanks = name.len() - name.trim_start().len();
        let length = name.trim_start().find(|c: char| !is_word(c) && c != '.').unwrap_or(name.len() - blanks);
        return insert(start + open + 2 + blanks + length, " >>");
    }
    let no_version = finding.code == code::UNSUPPORTED_VERSION && span == Span::default();
    if no_version { insert(0, "version: 2.1\n") } else { None }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// The one word of a text that is nearly the one that was meant.
fn misspelt(source: &str, meant: &str) -> Option<(usize, usize)> {
    let mut found = None;
    let mut at = 0;
    for word in source.split_inclusive(|c: char| !is_word(c)) {
        let bare = word.trim_end_matches(|c: char| !is_word(c));
        let distance = strsim::damerau_levenshtein(&bare.to_lowercase(), &meant.to_lowercase());
        if !bare.is_empty() && bare != meant && distance <= (meant.chars().count() / 3).max(1) {
            if found.is_some() {
                return None;
            }
            found = Some((at, at + bare.len()));
        }
        at += word.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(source: &str) -> (String, usize) {
        let Fixed { text, count } = fix(&Input::new("c.yml", source));
        let again = fix(&Input::new("c.yml", &text));
        assert_eq!((again.text.as_str(), again.count), (text.as_str(), 0), "what is mended stays");
        (text, count)
    }

    #[test]
    fn slips_of_all_kinds_are_mended() {
        let good = "version: 2.1\ncommands:\n  greet:\n    parameters:\n      who: {type: string}\n    steps:\n      - run: echo \"<< parameters.who >>\"\njobs:\n  build:\n    docker: [{image: a}]\n    steps:\n      - checkout\n      - greet: {who: you}\n      - run:\n          command: x\n          when: on_fail\nworkflows:\n  w:\n    jobs:\n      - build\n";
        let slips = [
            ("    docker:", "    dokcer:"),
            ("- checkout", "- chekout"),
            ("- greet:", "- gret:"),
            ("{who: you}", "{woh: you}"),
            ("parameters.who >>", "parameters.woh >>"),
            ("on_fail", "on_fial"),
            ("type: string", "type: strng"),
            ("    jobs:\n      - build", "    jobs\n      - build"),
            ("    steps:\n      - checkout", "    steps\n      - checkout"),
            ("- build\n", "- biuld\n"),
            ("version: 2.1\n", ""),
            ("command: x", "comand: x"),
        ];
        for (right, wrong) in slips {
            let source = good.replacen(right, wrong, 1);
            assert_ne!(source, good, "{right}");
            assert_eq!(fixed(&source), (good.to_owned(), 1), "{wrong}");
        }
        let all = slips.iter().fold(good.to_owned(), |text, (right, wrong)| text.replacen(right, wrong, 1));
        assert_eq!(fixed(&all).0, good, "{all}");
    }

    #[test]
    fn what_leaves_a_choice_is_left_alone() {
        for source in [
            "version: 2.1\ncommands:\n  test-a: {steps: [checkout]}\n  test-b: {steps: [checkout]}\njobs:\n  build: {machine: true, steps: [test-c]}\n",
            "version: 2.1\njobs:\n  build: {machine: true, steps: [checkout], nothing-like-it: 1}\n",
            "version: 2.1\njobs:\n  build:\n  machine: true\n",
        ] {
            assert_eq!(fixed(source), (source.to_owned(), 0));
        }
    }
}
