//! What is reported about a file: a code, a message and a place.

use crate::fix::Fix;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::HashSet;
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot run.
    Error,
    /// It runs, perhaps not as meant.
    Warning,
}

/// The text of the file in which a place is, so that its lines can be shown. Not part of a finding's data.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SourceText(pub Arc<str>);

impl std::fmt::Debug for SourceText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SourceText({} bytes)", self.0.len())
    }
}

/// A second place that helps to understand the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    /// What is there.
    pub message: String,
    /// Shown file name.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// The file's text.
    #[serde(skip)]
    pub text: SourceText,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable word; `docs/reference/errors/<code>.md` explains it.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Shown file name.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// 1-based.
    pub end_line: usize,
    /// 1-based, in characters; the first one behind the place.
    pub end_column: usize,
    /// What to do about it.
    pub hint: Option<String>,
    /// What to write instead, where the hint leaves no choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
    /// Other places: the calls that led here (innermost first), an earlier definition.
    pub related: Vec<Related>,
    /// The file's text: of an orb when the place is in one.
    #[serde(skip)]
    pub text: SourceText,
}

impl Diagnostic {
    /// The finding with the lines of `source` around it.
    ///
    /// A finding in an orb shows the orb's lines.
    pub fn render(&self, source: &str, color: bool) -> String {
        let source = if self.text.0.is_empty() { source } else { &self.text.0 };
        let start = offset_of(source, self.line, self.column);
        let end = offset_of(source, self.end_line, self.end_column).max(start);
        // A place over many lines would print them all: its first line says enough.
        let line_end = source[start..].find('\n').map_or(source.len(), |i| start + i);
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level.primary_title(self.message.as_str()).id(self.code).element(
            Snippet::source(source)
                .path(self.file.as_str())
                .annotation(AnnotationKind::Primary.span(start..end.min(line_end))),
        );
        for related in &self.related {
            group = group.element(Level::NOTE.message(format!(
                "{} ({}:{}:{})",
                related.message, related.file, related.line, related.column
            )));
        }
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// `file:line:col: message [code]`.
    pub fn one_line(&self) -> String {
        format!(
            "{}:{}:{}: {} [{}]",
            self.file,
            self.line,
            self.column,
            self.message.replace('\n', " "),
            self.code
        )
    }
}

/// Byte offset of a 1-based line and column, clamped to the text.
fn offset_of(source: &str, line: usize, column: usize) -> usize {
    let mut start = 0;
    for _ in 1..line {
        match source[start..].find('\n') {
            Some(i) => start += i + 1,
            None => return source.len(),
        }
    }
    let rest = &source[start..];
    let rest = &rest[..rest.find('\n').unwrap_or(rest.len())];
    start + rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(i, _)| i)
}

/// A place in one of the sources, in bytes. File 0 is the configuration; others are orbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Span {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// From here to the end of `other`, if that is further on in the same file.
    pub fn to(self, other: Self) -> Self {
        let end = if other.file == self.file { self.end.max(other.end) } else { self.end };
        Self { end, ..self }
    }
}

macro_rules! codes {
    ($($name:ident = $word:literal),* $(,)?) => {
        /// The stable words of all findings.
        pub mod code {
            $(#[doc = $word] pub const $name: &str = $word;)*
            /// All of them.
            pub const ALL: &[&str] = &[$($word),*];
        }
    };
}

codes! {
    YAML_SYNTAX = "yaml-syntax",
    YAML_LIMIT = "yaml-limit",
    DUPLICATE_KEY = "duplicate-key",
    UNSUPPORTED_VERSION = "unsupported-version",
    UNKNOWN_KEY = "unknown-key",
    MISSING_KEY = "missing-key",
    WRONG_TYPE = "wrong-type",
    INVALID_VALUE = "invalid-value",
    NOT_SUPPORTED = "not-supported",
    PARAMETER_DECLARATION = "parameter-declaration",
    MISSING_ARGUMENT = "missing-argument",
    UNEXPECTED_ARGUMENT = "unexpected-argument",
    ARGUMENT_TYPE = "argument-type",
    UNDECLARED_PARAMETER = "undeclared-parameter",
    UNKNOWN_PIPELINE_VALUE = "unknown-pipeline-value",
    BAD_INTERPOLATION = "bad-interpolation",
    BAD_EXPRESSION = "bad-expression",
    BAD_CONDITION = "bad-condition",
    LITERAL_CONDITION = "literal-condition",
    UNKNOWN_JOB = "unknown-job",
    UNKNOWN_COMMAND = "unknown-command",
    UNKNOWN_EXECUTOR = "unknown-executor",
    UNKNOWN_ORB = "unknown-orb",
    ORB_REFERENCE = "orb-reference",
    ORB_NOT_FOUND = "orb-not-found",
    ORB_UNAVAILABLE = "orb-unavailable",
    ORB_LIMIT = "orb-limit",
    RECURSIVE_CALL = "recursive-call",
    STEP_SHAPE = "step-shape",
    NO_EXECUTOR = "no-executor",
    INVALID_NAME = "invalid-name",
    BAD_MATRIX = "bad-matrix",
    BAD_PATTERN = "bad-pattern",
    UNKNOWN_REQUIRES = "unknown-requires",
    AMBIGUOUS_REQUIRES = "ambiguous-requires",
    REQUIRES_CYCLE = "requires-cycle",
    SIZE_LIMIT = "size-limit",
    BAD_SCHEDULE = "bad-schedule",
    SETUP = "setup",
    IGNORED = "ignored",
}

/// Findings beyond this number are not kept: they help nobody and cost memory.
const MAX_FINDINGS: usize = 200;

/// What is kept of a source that is too long to be read: enough to show its first lines.
const BEGINNING: usize = 4 << 10;

struct File {
    name: Arc<str>,
    text: Arc<str>,
    /// Bytes of the whole text; of one that is too long only the beginning is kept.
    length: usize,
    /// Starts of its lines, once they are asked for.
    lines: OnceCell<Vec<usize>>,
}

impl File {
    fn slice(&self, span: Span) -> &str {
        self.text.get(span.start as usize..span.end as usize).unwrap_or("")
    }

    /// 1-based line and column.
    fn place(&self, offset: usize) -> (usize, usize) {
        let lines = self.lines.get_or_init(|| {
            std::iter::once(0).chain(self.text.match_indices('\n').map(|(i, _)| i + 1)).collect()
        });
        let offset = offset.min(self.text.len());
        let line = lines.partition_point(|start| *start <= offset).max(1);
        let column = self.text.get(lines[line - 1]..offset).map_or(0, |text| text.chars().count());
        (line, column + 1)
    }
}

/// Collects the findings of one compile.
pub(crate) struct Sink {
    files: Vec<File>,
    seen: HashSet<(&'static str, Span, String)>,
    found: Vec<(Span, Diagnostic)>,
    /// Calls that led to the present place, outermost first.
    pub trace: Vec<(String, Span)>,
}

impl Sink {
    pub fn new(name: &str, text: &str) -> Self {
        let mut sink = Self { files: Vec::new(), seen: HashSet::new(), found: Vec::new(), trace: Vec::new() };
        let length = text.len();
        let mut end = if length > crate::yaml::MAX_SOURCE { BEGINNING } else { length };
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        sink.files.push(File { name: name.into(), text: text[..end].into(), length, lines: OnceCell::new() });
        sink
    }

    /// A further source; the number by which spans name it.
    pub fn add_file(&mut self, name: Arc<str>, text: Arc<str>) -> u32 {
        let length = text.len();
        self.files.push(File { name, text, length, lines: OnceCell::new() });
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    fn file(&self, span: Span) -> &File {
        self.files.get(span.file as usize).unwrap_or(&self.files[0])
    }

    /// Bytes of a source.
    pub fn length(&self, file: u32) -> usize {
        self.file(Span { file, ..Span::default() }).length
    }

    /// The source with this name.
    pub fn file_named(&self, name: &str) -> Option<u32> {
        let index = self.files.iter().position(|file| file.name.as_ref() == name)?;
        u32::try_from(index).ok()
    }

    pub fn source(&self, file: u32) -> Arc<str> {
        self.file(Span { file, ..Span::default() }).text.clone()
    }

    /// The text at a place.
    pub fn slice(&self, span: Span) -> &str {
        self.file(span).slice(span)
    }

    /// File, line, column and the whole first line of a place.
    pub fn describe(&self, span: Span) -> (String, usize, usize, String) {
        let file = self.file(span);
        let (line, column) = file.place(span.start as usize);
        let text = file.text.lines().nth(line - 1).unwrap_or_default().to_owned();
        (file.name.to_string(), line, column, text)
    }

    /// 1-based line of a place.
    pub fn line(&self, span: Span) -> usize {
        self.file(span).place(span.start as usize).0
    }

    pub fn error(&mut self, code: &'static str, span: Span, message: impl Into<String>) {
        self.add(Severity::Error, code, span, message.into(), None);
    }

    pub fn error_hint(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Error, code, span, message.into(), Some(hint.into()));
    }

    pub fn warning(&mut self, code: &'static str, span: Span, message: impl Into<String>) {
        self.add(Severity::Warning, code, span, message.into(), None);
    }

    /// A construct of the language that this version does not run.
    pub fn not_supported(&mut self, span: Span, what: &str) {
        self.error(code::NOT_SUPPORTED, span, format!("{what} is not supported yet"));
    }

    /// Adds a second place to the last finding.
    pub fn related(&mut self, message: impl Into<String>, span: Span) {
        let related = self.related_at(message.into(), span);
        if let Some((_, last)) = self.found.last_mut() {
            last.related.push(related);
        }
    }

    fn related_at(&self, message: String, span: Span) -> Related {
        let file = self.file(span);
        let (line, column) = file.place(span.start as usize);
        Related { message, file: file.name.to_string(), line, column, text: SourceText(file.text.clone()) }
    }

    pub fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        span: Span,
        message: String,
        hint: Option<String>,
    ) {
        if self.found.len() >= MAX_FINDINGS || !self.seen.insert((code, span, message.clone())) {
            return;
        }
        let file = self.file(span);
        // Ends behind the text proper, not behind the blanks that follow a block.
        let end = span.start as usize + file.slice(span).trim_end().len();
        let (line, column) = file.place(span.start as usize);
        let (end_line, end_column) = file.place(end);
        let calls = self.trace.iter().rev().take(8);
        let related = calls.map(|(message, at)| self.related_at(message.clone(), *at)).collect();
        let (name, text) = (file.name.to_string(), SourceText(file.text.clone()));
        self.found.push((
            span,
            Diagnostic {
                code,
                severity,
                message,
                file: name,
                line,
                column,
                end_line,
                end_column,
                hint,
                fix: None,
                related,
                text,
            },
        ));
    }

    /// The part of a scalar's place that shows `needle`, or the whole place.
    pub fn narrow(&self, span: Span, needle: &str) -> Span {
        match self.slice(span).find(needle).and_then(|i| u32::try_from(i).ok()) {
            Some(i) if !needle.is_empty() => {
                let start = span.start + i;
                Span { file: span.file, start, end: start + u32::try_from(needle.len()).unwrap_or(0) }
            }
            _ => span,
        }
    }

    /// Whether the source at this place is an interpolation.
    pub fn interpolated(&self, span: Span) -> bool {
        self.slice(span).contains("<<")
    }

    /// Whether a finding stands inside this place: what follows from it need not be reported.
    pub fn reported_within(&self, span: Span) -> bool {
        let inside = |at: &Span| at.file == span.file && at.start >= span.start && at.end <= span.end;
        self.found.iter().any(|(at, _)| inside(at))
    }

    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|(_, d)| d.severity == Severity::Error)
    }

    /// (errors, warnings), each in the order of the file, those in orbs last.
    pub fn finish(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.found.sort_by_key(|(span, _)| *span);
        let found = crate::review::review(self.found);
        found.into_iter().map(|(_, d)| d).partition(|d| d.severity == Severity::Error)
    }
}

/// The candidate that was probably meant, or two that are equally likely.
pub(crate) fn suggest<'n>(word: &str, candidates: impl IntoIterator<Item = &'n str>) -> Option<String> {
    let mut near: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(distance, c)| {
            *distance <= (c.chars().count() / 3).max(1) && *distance < c.len().min(word.len())
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    match near[..] {
        [] => None,
        [(least, a), (other, b), ..] if least == other => Some(format!("did you mean `{a}` or `{b}`?")),
        [(_, c), ..] => Some(format!("did you mean `{c}`?")),
    }
}
