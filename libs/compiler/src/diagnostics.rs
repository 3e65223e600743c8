//! What is reported about a file: a code, a message and a place.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot run.
    Error,
    /// It runs, perhaps not as meant.
    Warning,
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
    /// Other places: the calls that led here, an earlier definition.
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// The finding with the lines of `source` around it.
    pub fn render(&self, source: &str, color: bool) -> String {
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

/// A place in the source, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
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
    IGNORED = "ignored",
}

/// Findings beyond this number are not kept: they help nobody and cost memory.
const MAX_FINDINGS: usize = 200;

/// Collects findings of one file.
pub(crate) struct Sink<'a> {
    file: &'a str,
    source: &'a str,
    lines: Vec<usize>,
    seen: HashSet<(&'static str, Span, String)>,
    found: Vec<(Span, Diagnostic)>,
    /// Calls that led to the present place, outermost first.
    pub trace: Vec<(String, Span)>,
}

impl<'a> Sink<'a> {
    pub fn new(file: &'a str, source: &'a str) -> Self {
        let lines = std::iter::once(0).chain(source.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { file, source, lines, seen: HashSet::new(), found: Vec::new(), trace: Vec::new() }
    }

    pub fn source(&self) -> &'a str {
        self.source
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

    pub fn related(&mut self, message: impl Into<String>, span: Span) {
        let (line, column) = self.place(span.start);
        let related = Related { message: message.into(), file: self.file.to_owned(), line, column };
        if let Some((_, last)) = self.found.last_mut() {
            last.related.push(related);
        }
    }

    pub fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        span: Span,
        message: String,
        hint: Option<String>,
    ) {
        let errors = self.found.len();
        if errors >= MAX_FINDINGS || !self.seen.insert((code, span, message.clone())) {
            return;
        }
        // Ends behind the text proper, not behind the blanks that follow a block.
        let slice = self.source.get(span.start..span.end).unwrap_or("");
        let end = span.start + slice.trim_end().len();
        let (line, column) = self.place(span.start);
        let (end_line, end_column) = self.place(end);
        let related = self.trace.iter().rev().take(8).map(|(message, at)| {
            let (line, column) = self.place(at.start);
            Related { message: message.clone(), file: self.file.to_owned(), line, column }
        });
        let related = related.collect();
        let file = self.file.to_owned();
        self.found.push((
            span,
            Diagnostic { code, severity, message, file, line, column, end_line, end_column, hint, related },
        ));
    }

    /// The part of a scalar's place that shows `needle`, or the whole place.
    pub fn narrow(&self, span: Span, needle: &str) -> Span {
        match self.source.get(span.start..span.end).and_then(|text| text.find(needle)) {
            Some(i) if !needle.is_empty() => {
                Span { start: span.start + i, end: span.start + i + needle.len() }
            }
            _ => span,
        }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.source.len());
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1];
        let column = self.source.get(start..offset).map_or(0, |text| text.chars().count());
        (line, column + 1)
    }

    /// Whether the source at this place is an interpolation.
    pub fn interpolated(&self, span: Span) -> bool {
        self.source.get(span.start..span.end).is_some_and(|text| text.contains("<<"))
    }

    /// Whether a finding stands inside this place: what follows from it need not be reported.
    pub fn reported_within(&self, span: Span) -> bool {
        self.found.iter().any(|(at, _)| at.start >= span.start && at.end <= span.end)
    }

    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|(_, d)| d.severity == Severity::Error)
    }

    /// (errors, warnings), each in the order of the file.
    pub fn finish(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.found.sort_by_key(|(span, _)| *span);
        self.found.into_iter().map(|(_, d)| d).partition(|d| d.severity == Severity::Error)
    }
}

/// The candidate that was probably meant.
pub(crate) fn suggest<'n>(word: &str, candidates: impl IntoIterator<Item = &'n str>) -> Option<String> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(distance, c)| {
            *distance <= (c.chars().count() / 3).max(1) && *distance < c.len().min(word.len())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| format!("did you mean `{c}`?"))
}
