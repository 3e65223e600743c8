//! One layout for every file: two blanks a level, lists below their key, no trailing blanks.
//!
//! Only blanks and line ends change. Comments, quotes, anchors and the order of keys stay, and the result is
//! read again and compared before it is given back: a layout that this module does not know is refused, never
//! damaged.

use crate::diagnostics::{Diagnostic, Sink};
use crate::yaml;
use granit_parser::{Event, Parser, ScalarStyle, StructureStyle};

/// Why a file was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is not YAML; the findings say where.
    #[error("the file cannot be read as YAML")]
    Broken(Vec<Diagnostic>),
    /// Its layout is one that cannot be changed without changing what it means.
    #[error(
        "the file uses a layout that cannot be formatted without a change of meaning; nothing was changed"
    )]
    Unknown,
}

/// The text of `source` in the one layout. The values of the file are the same as before.
///
/// # Errors
/// The file is not YAML, or its layout is not one that can be changed safely.
pub fn format(file: &str, source: &str) -> Result<String, FormatError> {
    let before = read(file, source).map_err(FormatError::Broken)?;
    let mut text = source.replace("\r\n", "\n");
    // Odd layouts may settle in a second round; one that never does is not known.
    for _ in 0..3 {
        let Some(kinds) = line_kinds(&text) else { return Err(FormatError::Unknown) };
        let formatted = lay_out(&text, &kinds);
        if formatted == text {
            return match read(file, &text) {
                Ok(after) if after.same(&before) => Ok(text),
                _ => Err(FormatError::Unknown),
            };
        }
        text = formatted;
    }
    Err(FormatError::Unknown)
}

fn read(file: &str, source: &str) -> Result<yaml::Node, Vec<Diagnostic>> {
    let mut sink = Sink::new(file, source);
    match yaml::read(&mut sink, 0) {
        Some(node) => Ok(node),
        None => Err(sink.finish().0),
    }
}

/// What a line is, as far as its indentation goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    /// Starts an entry of a map or of a list, or a value.
    Entry,
    /// Starts an entry that ends with the header of a block scalar (`|`, `>`).
    Header,
    /// Goes on with a text that spans lines: leading blanks mean nothing.
    Folded,
    /// Goes on with a list or map in brackets.
    Bracket,
}

/// What each line is; `None` for a layout that is not known. Lines of block scalars are entries here: only
/// their header says how far they reach.
fn line_kinds(text: &str) -> Option<Vec<Line>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut kinds = vec![Line::Entry; lines.len() + 1];
    let mut open: Vec<Option<usize>> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        // Lines of the parser count from 1.
        let (first, last) = (span.start.line().max(1) - 1, span.end.line().max(1) - 1);
        match event {
            Event::Scalar(_, ScalarStyle::Literal | ScalarStyle::Folded, ..) => {
                // The parser's place is the first line of the text: its header is the line above.
                let above =
                    (0..first).rev().find(|line| lines.get(*line).is_some_and(|l| !l.trim().is_empty()));
                let header = above.into_iter().chain([first]).find(|line| is_header(lines.get(*line)))?;
                *kinds.get_mut(header)? = Line::Header;
            }
            Event::Scalar(..) => {
                for line in kinds.iter_mut().take(last + 1).skip(first + 1) {
                    *line = Line::Folded;
                }
            }
            Event::SequenceStart(style, ..) | Event::MappingStart(style, ..) => {
                open.push((style == StructureStyle::Flow).then_some(first));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(first) = open.pop()? {
                    for line in kinds.iter_mut().take(last + 1).skip(first + 1) {
                        if *line == Line::Entry {
                            *line = Line::Bracket;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some(kinds)
}

/// Whether a line ends with `|`, `>` and their indicators.
fn is_header(line: Option<&&str>) -> bool {
    let Some(text) = line.map(|line| line.split(" #").next().unwrap_or_default().trim_end()) else {
        return false;
    };
    text.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-')).ends_with(['|', '>'])
}

/// A block collection that is open: its column before and after.
#[derive(Clone, Copy)]
struct Level {
    old: usize,
    new: usize,
    list: bool,
}

struct Layout {
    out: String,
    levels: Vec<Level>,
    /// Whole-line comments that wait for the line they stand above, each with its column.
    comments: Vec<(usize, String)>,
    blank: bool,
}

fn lay_out(text: &str, kinds: &[Line]) -> String {
    let mut layout = Layout {
        out: String::with_capacity(text.len()),
        levels: Vec::new(),
        comments: Vec::new(),
        blank: false,
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut index = 0;
    while index < lines.len() {
        let line = lines[index];
        let kind = kinds.get(index).copied().unwrap_or(Line::Entry);
        index += 1;
        match kind {
            Line::Folded => layout.folded(line),
            Line::Bracket => layout.bracket(line),
            Line::Entry | Line::Header => {
                layout.entry(line);
                if kind == Line::Header {
                    index = layout.block_scalar(line, &lines, index);
                }
            }
        }
    }
    layout.flush(None);
    layout.out
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

impl Layout {
    fn put(&mut self, column: usize, text: &str) {
        // One blank line between two entries is a paragraph; more is noise, and none opens a file.
        if std::mem::take(&mut self.blank) && !self.out.is_empty() {
            self.out.push('\n');
        }
        if !text.is_empty() {
            self.out.extend(std::iter::repeat_n(' ', column));
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn top(&self) -> Level {
        self.levels.last().copied().unwrap_or(Level { old: 0, new: 0, list: false })
    }

    fn entry(&mut self, line: &str) {
        let content = line.trim();
        let column = indent_of(line);
        if content.is_empty() {
            match self.comments.last() {
                // A blank line between comments stays where it is.
                Some((_, last)) if !last.is_empty() => self.comments.push((0, String::new())),
                Some(_) => {}
                None => self.blank = true,
            }
            return;
        }
        if content.starts_with('#') {
            self.comments.push((column, content.to_owned()));
            return;
        }
        let marker = ["---", "..."].iter().any(|m| content == *m || content.starts_with(&format!("{m} ")));
        if column == 0 && (marker || content.starts_with('%')) {
            self.flush(None);
            self.levels.clear();
            return self.put(0, content);
        }
        let before = self.levels.clone();
        let is_item = content == "-" || content.starts_with("- ");
        self.levels.retain(|level| level.old < column || (level.old == column && (is_item || !level.list)));
        if is_item {
            // Behind a list at the column of its key nothing of the list's items is open any more.
            if let Some(list) = self.levels.iter().position(|level| level.list && level.old == column) {
                self.levels.truncate(list + 1);
            }
        }
        let mut old = column;
        let mut rest = content;
        let mut prefix = String::new();
        let mut start = None;
        loop {
            let item = rest == "-" || rest.starts_with("- ");
            let top = self.levels.last().copied();
            let level = match top {
                Some(top) if top.old == old && top.list == item => top,
                _ => {
                    let new = top.map_or(0, |top| top.new + 2);
                    let level = Level { old, new, list: item };
                    self.levels.push(level);
                    level
                }
            };
            start.get_or_insert(level.new);
            if !item {
                break;
            }
            let tail = rest[1..].trim_start_matches(' ');
            if tail.is_empty() || tail.starts_with('#') {
                prefix.push('-');
                if !tail.is_empty() {
                    prefix.push(' ');
                }
                rest = tail;
                break;
            }
            prefix.push_str("- ");
            old += rest.len() - tail.len();
            rest = tail;
        }
        self.flush(Some((column, start.unwrap_or(0), before)));
        let text = format!("{prefix}{rest}");
        self.put(start.unwrap_or(0), &text);
    }

    /// Comments go where the line below them goes, or where others of their own column are.
    fn flush(&mut self, below: Option<(usize, usize, Vec<Level>)>) {
        for (column, text) in std::mem::take(&mut self.comments) {
            if text.is_empty() {
                self.blank = true;
                continue;
            }
            let new = match &below {
                Some((old, new, _)) if *old == column => *new,
                Some((_, new, before)) => {
                    let own = before.iter().rev().find(|level| level.old == column);
                    own.map_or(*new, |level| level.new)
                }
                None => {
                    let own = self.levels.iter().rev().find(|level| level.old == column);
                    own.map_or(0, |level| level.new)
                }
            };
            self.put(new, &text);
        }
    }

    fn folded(&mut self, line: &str) {
        let content = line.trim_start();
        let column = self.top().new + 2;
        // An empty line in a text is a line break: it is kept as often as it stands there.
        self.put(column, content);
    }

    fn bracket(&mut self, line: &str) {
        let content = line.trim();
        let top = self.top();
        let least = if content.starts_with([']', '}']) { top.new } else { top.new + 2 };
        let shifted = (indent_of(line) + top.new).saturating_sub(top.old);
        self.put(shifted.max(least), content);
    }

    /// The lines of the block scalar whose header was the last line; the index of the first line behind it.
    fn block_scalar(&mut self, header: &str, lines: &[&str], from: usize) -> usize {
        let top = self.top();
        // `- |` has no key: what stands behind the dash is the scalar itself.
        let bare = header.trim_start_matches([' ', '-']).starts_with(['|', '>']);
        let parent = if bare { self.levels.iter().rev().nth(1).copied().unwrap_or(top) } else { top };
        let base = parent.new + 2;
        let tail =
            header.split(" #").next().and_then(|text| text.rsplit(['|', '>']).next()).unwrap_or_default();
        let digit = tail.chars().take(2).find_map(|c| c.to_digit(10)).filter(|d| *d > 0);
        let first =
            lines[from..].iter().find(|line| !line.trim().is_empty()).map_or(0, |line| indent_of(line));
        let (old, new) = match digit {
            Some(digit) => (parent.old + digit as usize, parent.new + digit as usize),
            None => (first, base),
        };
        let least = if parent.list || !self.levels.is_empty() { parent.old + 1 } else { 0 };
        let mut index = from;
        let mut content_end = from;
        while let Some(line) = lines.get(index) {
            let blank = line.trim_matches([' ', '\t']).is_empty() && line.len() <= old.max(indent_of(line));
            if !blank && (indent_of(line) < old || old < least) {
                break;
            }
            index += 1;
            if !line.trim().is_empty() {
                content_end = index;
            }
        }
        // With `+` the empty lines at the end belong to the text.
        let keep = tail.chars().take(2).any(|c| c == '+');
        let end = if keep { index } else { content_end };
        for line in &lines[from..end] {
            match line.get(old..) {
                Some(rest) if !rest.is_empty() => self.put(new, rest),
                _ => self.put(0, ""),
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::{FormatError, format};

    fn formatted(source: &str) -> String {
        let once = format("c.yml", source).expect("formats");
        assert_eq!(format("c.yml", &once).expect("formats"), once, "a second time changes nothing");
        once
    }

    #[test]
    fn lists_stand_below_their_key() {
        let source = "jobs:\n    build:\n        steps:\n        -   checkout\n        -   run:\n                command: a\n                name:  b  \n";
        let expected = "jobs:\n  build:\n    steps:\n      - checkout\n      - run:\n          command: a\n          name:  b\n";
        assert_eq!(formatted(source), expected);
    }

    #[test]
    fn block_scalars_move_with_their_key() {
        let source =
            "a:\n- run: |\n        one\n          two\n\n        three\n- >-\n    x\n     y\nb: |2\n   z\n";
        let expected =
            "a:\n  - run: |\n      one\n        two\n\n      three\n  - >-\n    x\n     y\nb: |2\n   z\n";
        assert_eq!(formatted(source), expected);
    }

    #[test]
    fn comments_stay_with_what_they_explain() {
        let source = "# top\n\n\n\na:   # side\n     # inside\n     b: 1\n\n     # last of a\n# of c\nc:\n    - 1\n    # end\n";
        let expected =
            "# top\n\na:   # side\n  # inside\n  b: 1\n\n  # last of a\n# of c\nc:\n  - 1\n  # end\n";
        assert_eq!(formatted(source), expected);
    }

    #[test]
    fn brackets_and_folded_texts_keep_their_values() {
        let source = "a: [1,\n    2,\n]\nb: one\n    two\n\n    three\nc: {x: y,\n  z: \"q\n    r\"}\n";
        let out = formatted(source);
        assert!(out.starts_with("a: [1,\n    2,\n]\nb: one\n  two\n\n  three\n"), "{out}");
    }

    #[test]
    fn what_is_not_yaml_is_refused_with_its_place() {
        let Err(FormatError::Broken(findings)) = format("c.yml", "a: [1\nb: 2\n") else { panic!("accepted") };
        assert_eq!(findings[0].code, "yaml-syntax");
    }
}
