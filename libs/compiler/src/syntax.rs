//! Why a text is no YAML, in words that help: the parser says where it gave up, which is often lines behind the
//! slip.

use crate::diagnostics::suggest;
use std::ops::Range;

/// How many lines above the parser's place are searched for the slip.
const LINES: usize = 200;

/// A slip: its place in bytes and what to do.
pub(crate) struct Slip {
    pub at: Range<usize>,
    pub hint: String,
}

struct Line<'s> {
    start: usize,
    text: &'s str,
}

/// The slip because of which the parser stopped at `offset` with the message `info`.
pub(crate) fn slip(source: &str, offset: usize, info: &str) -> Option<Slip> {
    let lines = lines_before(source, offset);
    if info.contains("unknown anchor") {
        return anchor(source, offset);
    }
    tab(&lines, source, offset).or_else(|| first_character(source, offset, info)).or_else(|| {
        let of = |words: &[&str]| words.iter().any(|word| info.contains(word));
        let quoted = of(&["quoted scalar", "multiline"]);
        let flow = of(&["flow", "placement of ':'", "',' or"]);
        let block =
            of(&["mapping values", "expected key", "expected ':'", "simple key", "block", "indicator"]);
        let mut found = quoted.then(|| quote(&lines)).flatten();
        found = found.or_else(|| block.then(|| blank(&lines)).flatten());
        found = found.or_else(|| {
            (block || quoted).then(|| inner_colon(&lines, info.contains("mapping values"))).flatten()
        });
        found = found.or_else(|| flow.then(|| bracket(&lines)).flatten());
        found = found.or_else(|| (block || flow).then(|| colon(&lines, source)).flatten());
        found = found.or_else(|| block.then(|| dash(&lines)).flatten());
        found = found.or_else(|| block.then(|| outdented(&lines)).flatten());
        found.or_else(|| quote(&lines)).or_else(|| block.then(|| indentation(&lines)).flatten())
    })
}

/// Lines up to the one that holds `offset`, the nearest first.
fn lines_before(source: &str, offset: usize) -> Vec<Line<'_>> {
    let end = source[offset..].find('\n').map_or(source.len(), |i| offset + i);
    let mut lines = Vec::new();
    let mut rest = &source[..end];
    while lines.len() < LINES {
        let start = rest.rfind('\n').map_or(0, |i| i + 1);
        lines.push(Line { start, text: rest[start..].trim_end_matches('\r') });
        if start == 0 {
            break;
        }
        rest = &rest[..start - 1];
    }
    lines
}

/// A tab among the blanks that indent a line: the parser's own one, one above or the one below.
fn tab(lines: &[Line<'_>], source: &str, offset: usize) -> Option<Slip> {
    let after = source[offset..].find('\n').map(|i| offset + i + 1);
    let below = after.map(|start| Line { start, text: source[start..].lines().next().unwrap_or_default() });
    let near = lines.first().into_iter().chain(below.as_ref()).chain(lines.iter().skip(1).take(3));
    for line in near {
        let blanks = line.text.len() - line.text.trim_start_matches([' ', '\t']).len();
        if let Some(column) = line.text[..blanks].find('\t')
            && line.text.len() > blanks
        {
            let at = line.start + column..line.start + blanks;
            return Some(Slip { at, hint: "indent with blanks: YAML allows no tab there".to_owned() });
        }
    }
    None
}

/// An alias of something that has no name yet.
fn anchor(source: &str, offset: usize) -> Option<Slip> {
    let is_end = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']' | '{' | '}');
    let word = |text: &str| text[..text.find(is_end).unwrap_or(text.len())].to_owned();
    let start = offset + source[offset..].find('*').filter(|i| *i <= 1)? + 1;
    let name = word(&source[start..]);
    let named = |part: &str| -> Vec<String> { part.split('&').skip(1).map(word).collect() };
    let hint = match suggest(&name, named(&source[..start]).iter().map(String::as_str)) {
        Some(hint) => hint,
        None if named(&source[start..]).contains(&name) => {
            format!("`&{name}` stands below: what it names must stand above its first use")
        }
        None => format!("write `&{name}` in front of what it stands for, above this line"),
    };
    Some(Slip { at: start..start + name.len(), hint })
}

/// A character that cannot start a text.
fn first_character(source: &str, offset: usize, info: &str) -> Option<Slip> {
    let first = source[offset..].chars().next().filter(|c| matches!(c, '@' | '`' | '%'))?;
    if !info.contains("character") && !info.contains("indicator") {
        return None;
    }
    let end = source[offset..].find('\n').map_or(source.len(), |i| offset + i);
    Some(Slip { at: offset..end, hint: format!("put the text in quotes: it cannot start with `{first}`") })
}

/// A key with its value right behind its colon: the parser takes both for one text.
fn blank(lines: &[Line<'_>]) -> Option<Slip> {
    for (index, line) in lines.iter().enumerate().take(3) {
        let own = line.text.trim_start().trim_start_matches("- ").trim_start();
        let Some((key, value)) = own.split_once(':') else { continue };
        let is_key = KEYS.contains(&key) && !value.is_empty() && !value.starts_with([' ', ':', '/']);
        if is_key && !in_script(lines, index) {
            let start = line.start + line.text.len() - own.len();
            return Some(Slip {
                at: start..line.start + line.text.trim_end().len(),
                hint: format!("write a blank behind `{key}:`"),
            });
        }
    }
    None
}

/// Keys that stand in nearly every file, in front of a text.
const KEYS: &[&str] = &[
    "at",
    "command",
    "default",
    "description",
    "executor",
    "image",
    "key",
    "name",
    "only",
    "path",
    "resource_class",
    "root",
    "run",
    "shell",
    "type",
    "when",
    "working_directory",
];

/// A text without quotes that holds a colon and a blank, or one that goes on behind its closing quote.
///
/// `colon`: the parser came upon a colon.
fn inner_colon(lines: &[Line<'_>], colon: bool) -> Option<Slip> {
    let line = lines.first().filter(|line| line.text.contains(": "))?;
    let (column, text) = value(line)?;
    let text = text.trim_end();
    let at = line.start + column..line.start + column + text.len();
    let first = text.chars().next()?;
    if let mark @ ('"' | '\'') = first {
        let closed = text[1..].find(mark)? + 2;
        let rest = text[closed..].trim_start();
        let other = if mark == '"' { '\'' } else { '"' };
        let hint = format!("the text goes on behind its quotes: put all of it in `{other}`, or below a `|`");
        return (!rest.is_empty() && !rest.starts_with('#')).then_some(Slip { at, hint });
    }
    let plain = !matches!(first, '[' | '{' | '|' | '>' | '&' | '*' | '!' | '#');
    let hint = "put the text in quotes, or in the next line below a `|`: it holds a colon and a blank";
    (colon && plain && (text.contains(": ") || text.ends_with(':')))
        .then_some(Slip { at, hint: hint.to_owned() })
}

/// Whether a line holds more than a comment.
fn is_filled(line: &Line<'_>) -> bool {
    let text = line.text.trim();
    !text.is_empty() && !text.starts_with('#')
}

/// An entry of a list without its dash: the first one, or the one at which the parser stopped.
fn dash(lines: &[Line<'_>]) -> Option<Slip> {
    let line = lines.first().filter(|line| is_filled(line))?;
    let own = indent(line.text);
    let is_entry = |line: &Line<'_>| line.text.trim_start().starts_with("- ");
    let parent = lines.iter().position(|line| is_filled(line) && indent(line.text) < own)?;
    if is_entry(line) && is_entry(&lines[parent]) {
        let hint =
            format!("start this entry at column {}, as the one above it", indent(lines[parent].text) + 1);
        return Some(Slip { at: line.start + own..line.start + line.text.trim_end().len(), hint });
    }
    let first = lines[..parent].iter().rev().find(|line| is_filled(line))?;
    // A list may stand at the column of the keys around it.
    if lines[1..parent].iter().any(|above| is_entry(above) && indent(above.text) == own) && !is_entry(first) {
        return None;
    }
    let slip = match (is_entry(line), is_entry(first)) {
        (true, false) => first,
        (false, true) if indent(first.text) == own => line,
        _ => return None,
    };
    let word = slip.text.trim();
    let word = &word[..word.find([':', ' ']).unwrap_or(word.len())];
    let start = slip.start + indent(slip.text);
    let hint = format!("write `- ` in front of `{word}`: it is an entry of a list");
    Some(Slip { at: start..slip.start + slip.text.trim_end().len(), hint })
}

/// A key at the column of the one that it belongs to, with its own lines still below it:
/// `- run:` and in the next line `name: x`, two blanks too far to the left.
fn outdented(lines: &[Line<'_>]) -> Option<Slip> {
    let own = indent(lines.first()?.text);
    let filled: Vec<&Line<'_>> = lines.iter().skip(1).filter(|line| is_filled(line)).collect();
    let above = filled.iter().position(|line| indent(line.text) < own)?;
    let (line, owner) = (filled[above], filled.get(above + 1)?);
    let entry = owner.text.trim().strip_prefix("- ")?;
    let key = entry.trim_start().strip_suffix(':')?;
    let column = owner.text.len() - owner.text.trim_start().len() + 2;
    let word = line.text.trim().split(':').next()?;
    (indent(line.text) == column && line.text.contains(':')).then(|| Slip {
        at: line.start + column..line.start + line.text.trim_end().len(),
        hint: format!("indent `{word}:` further, so that it stands below `{key}:`"),
    })
}

/// What stands behind `key:` or a dash.
fn value<'s>(line: &Line<'s>) -> Option<(usize, &'s str)> {
    let text = line.text;
    let trimmed = text.trim_start();
    let start = match text.find(": ") {
        Some(colon) => colon + 2,
        None if trimmed.starts_with("- ") => text.len() - trimmed.len() + 2,
        None => return None,
    };
    let blanks = text[start..].len() - text[start..].trim_start().len();
    Some((start + blanks, &text[start + blanks..]))
}

/// A quote that opens a value and is not closed in its line.
fn quote(lines: &[Line<'_>]) -> Option<Slip> {
    for line in lines {
        let Some((column, text)) = value(line) else { continue };
        let Some(mark) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) else { continue };
        let escaped = text.replace("\\\\", "").replace("\\\"", "");
        if escaped.matches(mark).count() % 2 == 1 {
            let at = line.start + column..line.start + line.text.trim_end().len();
            return Some(Slip {
                at,
                hint: format!("close the quote: write `{mark}` at the end of the text"),
            });
        }
    }
    None
}

/// A bracket that opens a value and is not closed in its line.
fn bracket(lines: &[Line<'_>]) -> Option<Slip> {
    for line in lines {
        let Some((column, text)) = value(line) else { continue };
        let Some(open) = text.chars().next().filter(|c| matches!(c, '[' | '{')) else { continue };
        let close = if open == '[' { ']' } else { '}' };
        // What is in quotes or in an interpolation opens nothing.
        let bare: String = text.split('"').step_by(2).collect();
        if bare.matches(open).count() > bare.matches(close).count() {
            let at = line.start + column..line.start + line.text.trim_end().len();
            return Some(Slip { at, hint: format!("close the list or map: write `{close}` at its end") });
        }
    }
    None
}

fn indent(text: &str) -> usize {
    text.len() - text.trim_start_matches(' ').len()
}

/// A word alone in its line above deeper lines: a key without its colon.
fn colon(lines: &[Line<'_>], source: &str) -> Option<Slip> {
    for (index, line) in lines.iter().enumerate() {
        let word = line.text.trim();
        let word = word.strip_prefix("- ").unwrap_or(word).trim();
        let is_word = word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !is_word {
            continue;
        }
        let end = line.start + line.text.len();
        let next = lines[..index].iter().rev().map(|line| line.text).find(|text| !text.trim().is_empty());
        let next = next.or_else(|| source[end..].lines().skip(1).find(|text| !text.trim().is_empty()));
        let own = indent(line.text) + if line.text.trim().starts_with("- ") { 2 } else { 0 };
        let has_body = next.is_some_and(|text| {
            indent(text) > own || (indent(text) == own && text.trim_start().starts_with("- "))
        });
        if has_body && !in_script(lines, index) {
            let start = line.start + line.text.find(word).unwrap_or(0);
            return Some(Slip {
                at: start..start + word.len(),
                hint: format!("a `:` is missing behind `{word}`"),
            });
        }
    }
    None
}

/// Whether the line stands in the text of a `|` or `>` above.
fn in_script(lines: &[Line<'_>], index: usize) -> bool {
    let mut column = indent(lines[index].text);
    for line in &lines[index + 1..] {
        let text = line.text.trim_end();
        if text.trim().is_empty() || indent(text) >= column {
            continue;
        }
        column = indent(text);
        let head = text.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
        if head.ends_with(['|', '>']) {
            return true;
        }
    }
    // What stands further up is not known.
    lines.len() >= LINES && column > 0
}

/// Nothing better is known: the line is indented unlike those around it.
fn indentation(lines: &[Line<'_>]) -> Option<Slip> {
    let line = lines.first()?;
    let own = indent(line.text);
    let above = lines
        .iter()
        .skip(1)
        .find(|line| !line.text.trim().is_empty() && !line.text.trim().starts_with('#'))?;
    let hint = format!(
        "compare the indentation: this line starts at column {}, the one above at column {}",
        own + 1,
        indent(above.text) + 1
    );
    let start = line.start + own;
    Some(Slip { at: start..line.start + line.text.trim_end().len().max(own), hint })
}

#[cfg(test)]
mod tests {
    use crate::{Input, compile};

    #[test]
    fn the_slip_and_not_where_the_parser_gave_up() {
        let cases = [
            ("jobs:\n  a:\n\t\tb: 1\n", 3, "tab"),
            ("jobs:\n  a: \"x\n  b: 1\nc: 2\n", 2, "close the quote: write `\"`"),
            ("a: 'x\nb: 1\n", 1, "close the quote: write `'`"),
            ("a:\n  b: [x, y\n  c: 1\nd: 2\n", 2, "write `]`"),
            ("a:\n  b: {x: y\n  c: 1\nd: 2\n", 2, "write `}`"),
            (
                "jobs:\n  a:\n    steps\n      - run:\n          name: x\n",
                3,
                "a `:` is missing behind `steps`",
            ),
            ("jobs:\n  a:\n    x: 1\n   y: 2\n", 4, "column 4"),
            ("a: &base {b: 1}\nc: *bsae\n", 2, "did you mean `base`?"),
            ("a: *late\nb: &late 1\n", 1, "`&late` stands below"),
            ("a: *none\n", 1, "write `&none` in front of"),
            ("run: @make\n", 1, "it cannot start with `@`"),
            ("- run:\n    name: x\n    command:make\n    when: always\n", 3, "a blank behind `command:`"),
            ("- run: echo note: done\n", 1, "put the text in quotes"),
            ("- run: \"make\" all: x\n", 1, "goes on behind its quotes"),
            ("steps:\n  run: a\n  - checkout\n", 2, "write `- ` in front of `run`"),
            ("docker:\n    image: a\n  - image: b\n", 2, "write `- ` in front of `image`"),
            ("a:\n  machine: true\n  steps:\n  - run:\n  key: x\n  - run: y\n", 6, "compare the indentation"),
            ("- run:\n    name: x\n  - run: y\n", 3, "start this entry at column 1"),
            ("steps:\n  - checkout\n  run: a\n", 3, "write `- ` in front of `run`"),
            (
                "- run:\n  name: x\n    command: y\n",
                2,
                "indent `name:` further, so that it stands below `run:`",
            ),
            ("- a:\n  requires:\n      - b\n    filters: x\n", 2, "indent `requires:` further"),
        ];
        for (source, line, hint) in cases {
            let errors = compile(&Input::new("c.yml", source)).expect_err(source);
            assert_eq!(errors[0].code, "yaml-syntax", "{source}");
            assert_eq!(errors[0].line, line, "{source}: {:?}", errors[0]);
            let said = errors[0].hint.as_deref().unwrap_or_default();
            assert!(said.contains(hint), "{source}: {said}");
        }
    }
}
