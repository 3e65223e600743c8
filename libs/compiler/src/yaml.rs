//! The tree of a YAML file: every value knows where it stands. The only module that knows the parser.

use crate::diagnostics::{Sink, Span, code};
use crate::scalars;
use crate::scope::Scope;
use granit_parser::{Event, Parser, ScalarStyle, StrInput, Tag};
use indexmap::IndexMap;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A source longer than this is refused before it is parsed.
pub(crate) const MAX_SOURCE: usize = 4 << 20;
/// Levels of nesting, with aliases in place.
const MAX_DEPTH: usize = 100;
/// Values of the tree, with aliases in place.
const MAX_NODES: usize = 300_000;
/// Uses of anchors, and values that they stand for.
const MAX_ALIASES: usize = 1000;
const MAX_COPIED: usize = 100_000;
/// Bytes of one key, and of one scalar.
const MAX_KEY: usize = 1024;
const MAX_SCALAR: usize = 256 << 10;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub span: Span,
    pub value: Value,
}

/// Collections are shared: an alias costs nothing.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(Float),
    Str(Arc<str>),
    Seq(Arc<Vec<Node>>),
    Map(Arc<Map>),
    /// An argument of type `steps` or `executor`: names in it belong to the scope of who wrote it.
    Scoped(Arc<Scope>, Arc<Node>),
}

/// A number with a fraction, and how it was written: 1.10 is 1.1, but a version in an environment stays what it is.
#[derive(Clone)]
pub(crate) struct Float {
    pub number: f64,
    /// Boxed twice, so that the rare float makes no other value larger.
    pub written: Arc<Box<str>>,
}

impl Float {
    pub fn new(number: f64, written: &str) -> Self {
        Self { number, written: Arc::new(written.into()) }
    }
}

impl std::fmt::Debug for Float {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number.fmt(f)
    }
}

/// Most maps are small and short-lived: hashing must be cheap, and hard to foresee from outside.
pub(crate) type Map = IndexMap<Arc<str>, Entry, foldhash::fast::RandomState>;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Span,
    pub value: Node,
}

impl Node {
    pub fn str(span: Span, text: impl Into<Arc<str>>) -> Self {
        Self { span, value: Value::Str(text.into()) }
    }

    pub fn map(span: Span, map: Map) -> Self {
        Self { span, value: Value::Map(Arc::new(map)) }
    }

    pub fn seq(span: Span, items: Vec<Node>) -> Self {
        Self { span, value: Value::Seq(Arc::new(items)) }
    }

    pub fn as_map(&self) -> Option<&Arc<Map>> {
        if let Value::Map(map) = &self.value { Some(map) } else { None }
    }

    pub fn as_str(&self) -> Option<&Arc<str>> {
        if let Value::Str(text) = &self.value { Some(text) } else { None }
    }

    pub fn as_seq(&self) -> Option<&Arc<Vec<Node>>> {
        if let Value::Seq(items) = &self.value { Some(items) } else { None }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The name of the type as messages show it.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Int(_) => "integer",
            Value::Float(_) => "number",
            Value::Str(_) => "string",
            Value::Seq(_) => "list",
            Value::Map(_) => "map",
            Value::Scoped(_, inner) => inner.kind(),
        }
    }

    /// A scalar as text.
    pub fn text(&self) -> Option<String> {
        match &self.value {
            Value::Null => Some(String::new()),
            Value::Bool(b) => Some(b.to_string()),
            Value::Int(n) => Some(n.to_string()),
            Value::Float(n) => Some(format!("{n:?}")),
            Value::Str(text) => Some(text.to_string()),
            Value::Scoped(_, inner) => inner.text(),
            Value::Seq(_) | Value::Map(_) => None,
        }
    }

    /// A scalar as a message shows it; a collection by its type.
    pub fn shown(&self) -> String {
        match self.text() {
            Some(text) if text.chars().count() > 60 => {
                format!("\"{}…\"", text.chars().take(60).collect::<String>())
            }
            Some(text) => format!("\"{text}\""),
            None => format!("a {}", self.kind()),
        }
    }

    /// Equality by type and value; places do not count.
    pub fn same(&self, other: &Node) -> bool {
        match (&self.value, &other.value) {
            (Value::Scoped(_, a), _) => a.same(other),
            (_, Value::Scoped(_, b)) => self.same(b),
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a.number == b.number,
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::Seq(a), Value::Seq(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.same(b))
            }
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(k, v)| b.get(k).is_some_and(|other| v.value.same(&other.value)))
            }
            _ => false,
        }
    }

    /// Levels of nesting.
    pub fn height(&self) -> usize {
        match &self.value {
            Value::Seq(items) => 1 + items.iter().map(Node::height).max().unwrap_or(0),
            Value::Map(map) => 1 + map.values().map(|e| e.value.height()).max().unwrap_or(0),
            Value::Scoped(_, inner) => inner.height(),
            _ => 1,
        }
    }
}

/// The tree of a source; `None` when it cannot be read (the sink says why).
pub(crate) fn read(sink: &mut Sink, file: u32) -> Option<Node> {
    let text = sink.source(file);
    let source: &str = &text;
    let length = sink.length(file);
    if length > MAX_SOURCE {
        let message = format!("the configuration is {length} bytes long; at most {MAX_SOURCE} are accepted");
        sink.error(code::YAML_LIMIT, Span { file, ..Span::default() }, message);
        return None;
    }
    let mut mended = Mended::default();
    loop {
        let options = granit_parser::options! { emit_comments: false };
        let parsed = if mended.shifts.is_empty() { source } else { mended.text.as_str() };
        let mut reader = Reader {
            events: Parser::new_from_str_with_options(parsed, options),
            sink,
            source,
            parsed,
            mended: &mended,
            file,
            anchors: HashMap::new(),
            keys: HashSet::new(),
            total: 0,
            aliases: 0,
            copied: 0,
        };
        match reader.document() {
            Ok(root) => return Some(root),
            Err(Failed::Told) => return None,
            Err(Failed::Indent { at, info }) => mended = mended.indented(source, at, info),
        }
    }
}

/// Lines of quoted texts that may stand further to the left than their keys.
const MAX_MENDED: usize = 100;
/// Blanks in front of such a line: more than any key has.
const BLANKS: &str = match std::str::from_utf8(&[b' '; 1024]) {
    Ok(blanks) => blanks,
    Err(_) => "",
};

/// A source whose quoted texts go on in lines that are indented as little as their keys, or less. The reference
/// parser takes them, ours does not: it gets them with more blanks, which mean nothing there.
#[derive(Default)]
struct Mended {
    text: String,
    /// Where blanks were put in, in bytes of `text`, ascending.
    shifts: Vec<usize>,
    /// The first place in bytes of the source, and what the parser said of it.
    first: Option<(usize, String)>,
}

impl Mended {
    /// With one more line indented; `at` in bytes of the text as it is now.
    fn indented(mut self, source: &str, at: usize, info: String) -> Self {
        if self.shifts.is_empty() {
            source.clone_into(&mut self.text);
            self.first = Some((at, info));
        }
        self.text.insert_str(at, BLANKS);
        self.shifts.push(at);
        self
    }

    /// The place in the source.
    fn original(&self, offset: usize) -> usize {
        let before = self.shifts.iter().filter(|at| **at < offset);
        before.fold(offset, |left, at| left - BLANKS.len().min(offset - at))
    }
}

/// The names of anchors and of their uses: place, number of the anchor, whether it is defined there. As far as the
/// source can be read.
pub(crate) fn anchors(source: &str) -> Vec<(Span, usize, bool)> {
    if source.len() > MAX_SOURCE {
        return Vec::new();
    }
    let options = granit_parser::options! { emit_comments: false, emit_anchor_events: true };
    let name = |span: granit_parser::Span| {
        let (start, end) = (span.start.byte_offset()?, span.end.byte_offset()?);
        // Behind the `&` or the `*`.
        Some(Span { file: 0, start: u32::try_from(start + 1).ok()?, end: u32::try_from(end).ok()? })
    };
    let events = Parser::new_from_str_with_options(source, options);
    let found = events.map_while(Result::ok).filter_map(|(event, span)| match event {
        Event::Anchor(id, _) => Some((name(span)?, id, true)),
        Event::Alias(id) => Some((name(span)?, id, false)),
        _ => None,
    });
    found.collect()
}

struct Reader<'s, 'k> {
    events: Parser<'s, StrInput<'s>>,
    sink: &'k mut Sink,
    source: &'s str,
    /// What the parser reads: the source, or what was made of it.
    parsed: &'s str,
    mended: &'k Mended,
    file: u32,
    anchors: HashMap<usize, Anchored>,
    keys: HashSet<Arc<str>>,
    total: usize,
    aliases: usize,
    /// Values that aliases stand for.
    copied: usize,
}

struct Anchored {
    node: Node,
    weight: usize,
    height: usize,
}

enum Failed {
    /// The sink knows why.
    Told,
    /// A quoted text goes on too far to the left: the place in bytes of what was parsed.
    Indent { at: usize, info: String },
}

type Tagged<'e> = Option<Cow<'e, Tag>>;

impl<'s> Reader<'s, '_> {
    /// No source is longer than `MAX_SOURCE`.
    fn span(&self, start: usize, end: usize) -> Span {
        let short = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        Span { file: self.file, start: short(start), end: short(end) }
    }

    fn next(&mut self) -> Result<(Event<'s>, Span), Failed> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                let start = self.offset(&span.start);
                let end = self.offset(&span.end).max(start);
                Ok((event, self.span(start, end)))
            }
            Some(Err(error)) => {
                let (at, info) = (self.parsed_offset(error.marker()), error.info());
                let indent = matches!(error.kind(), granit_parser::ErrorKind::InvalidQuotedScalarIndent);
                if indent && self.mended.shifts.len() < MAX_MENDED {
                    return Err(Failed::Indent { at, info });
                }
                // More blanks did not help: a quote was forgotten where there were too few.
                let (start, info) =
                    self.mended.first.clone().unwrap_or_else(|| (self.mended.original(at), info));
                let end = self.source[start..].chars().next().map_or(start, |c| start + c.len_utf8());
                let message = format!("Unable to parse YAML: {info}");
                match crate::syntax::slip(self.source, start, &info) {
                    Some(slip) => {
                        let at = self.span(slip.at.start, slip.at.end);
                        self.sink.error_hint(code::YAML_SYNTAX, at, message, slip.hint);
                    }
                    None => self.sink.error(code::YAML_SYNTAX, self.span(start, end), message),
                }
                Err(Failed::Told)
            }
            None => Ok((Event::StreamEnd, self.span(self.source.len(), self.source.len()))),
        }
    }

    /// Byte offset of a mark in the source, on a character boundary.
    fn offset(&self, mark: &granit_parser::Marker) -> usize {
        self.mended.original(self.parsed_offset(mark))
    }

    fn parsed_offset(&self, mark: &granit_parser::Marker) -> usize {
        let offset = mark.byte_offset().unwrap_or_else(|| {
            self.parsed.char_indices().nth(mark.index()).map_or(self.parsed.len(), |(i, _)| i)
        });
        let mut offset = offset.min(self.parsed.len());
        while !self.parsed.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    fn document(&mut self) -> Result<Node, Failed> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                _ if root.is_some() => {
                    self.sink.error(code::YAML_SYNTAX, span, "the file holds more than one YAML document");
                    return Err(Failed::Told);
                }
                event => root = Some(self.node(event, span, 0)?.0),
            }
        }
        Ok(root.unwrap_or(Node { span: self.span(0, 0), value: Value::Null }))
    }

    fn count(&mut self, nodes: usize, height: usize, span: Span) -> Result<(), Failed> {
        self.total = self.total.saturating_add(nodes);
        if self.total > MAX_NODES {
            self.sink.error(
                code::YAML_LIMIT,
                span,
                format!("the file holds more than {MAX_NODES} values, aliases included"),
            );
            return Err(Failed::Told);
        }
        if height > MAX_DEPTH {
            self.sink.error(
                code::YAML_LIMIT,
                span,
                format!("values are nested deeper than {MAX_DEPTH} levels"),
            );
            return Err(Failed::Told);
        }
        Ok(())
    }

    fn alias(&mut self, weight: usize, span: Span) -> Result<(), Failed> {
        self.aliases += 1;
        self.copied = self.copied.saturating_add(weight);
        let message = if self.aliases > MAX_ALIASES {
            format!("the file uses more than {MAX_ALIASES} aliases")
        } else if self.copied > MAX_COPIED {
            format!("the aliases of the file stand for more than {MAX_COPIED} values")
        } else {
            return Ok(());
        };
        self.sink.error(code::YAML_LIMIT, span, message);
        Err(Failed::Told)
    }

    /// The value that starts with `event`, and its height.
    fn node(&mut self, event: Event<'s>, span: Span, depth: usize) -> Result<(Node, usize), Failed> {
        let before = self.total;
        self.count(1, depth + 1, span)?;
        let (node, height, anchor) = match event {
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id) else {
                    self.sink.error(
                        code::YAML_SYNTAX,
                        span,
                        "an alias stands inside the value that it names",
                    );
                    return Err(Failed::Told);
                };
                let (weight, height) = (anchored.weight, anchored.height);
                let node = anchored.node.clone();
                self.alias(weight, span)?;
                self.count(weight, depth + height, span)?;
                return Ok((node, height));
            }
            Event::Scalar(text, ..) if text.len() > MAX_SCALAR => {
                let message =
                    format!("a text is {} bytes long; at most {MAX_SCALAR} are accepted", text.len());
                self.sink.error(code::YAML_LIMIT, span, message);
                return Err(Failed::Told);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag, span)?;
                (Node { span, value }, 1, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(tag, "seq", span)?;
                let (mut items, mut height, mut end) = (Vec::new(), 0, span.end);
                loop {
                    let (event, at) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        end = end.max(at.end);
                        break;
                    }
                    let (item, h) = self.node(event, at, depth + 1)?;
                    height = height.max(h);
                    items.push(item);
                }
                (Node::seq(Span { end, ..span }, items), height + 1, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(tag, "map", span)?;
                let (map, height, end) = self.mapping(span, depth)?;
                (Node::map(Span { end, ..span }, map), height + 1, anchor)
            }
            _ => {
                self.sink.error(code::YAML_SYNTAX, span, "a value was expected here");
                return Err(Failed::Told);
            }
        };
        if anchor != 0 {
            let weight = self.total - before;
            self.anchors.insert(anchor, Anchored { node: node.clone(), weight, height });
        }
        Ok((node, height))
    }

    fn mapping(&mut self, span: Span, depth: usize) -> Result<(Map, usize, u32), Failed> {
        let (mut map, mut height, mut end) = (Map::default(), 0, span.end);
        // Keys that stand here only because they were merged: one that is written in the map itself wins.
        let mut borrowed: HashSet<Arc<str>> = HashSet::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                end = end.max(at.end);
                return Ok((map, height, end));
            }
            let (key, merge) = self.key(event, at)?;
            let (event, value_at) = self.next()?;
            let (value, h) = self.node(event, value_at, depth + 1)?;
            height = height.max(h);
            if merge {
                for source in self.merged(&value)? {
                    for (key, entry) in source.iter() {
                        if !map.contains_key(key) {
                            borrowed.insert(key.clone());
                            map.insert(key.clone(), entry.clone());
                        }
                    }
                }
                continue;
            }
            if !borrowed.is_empty() && borrowed.remove(&key) {
                map.shift_remove(&key);
            }
            if let Some(first) = map.insert(key.clone(), Entry { key: at, value }) {
                self.sink.error(code::DUPLICATE_KEY, at, format!("the key `{key}` stands twice in this map"));
                self.sink.related("first here", first.key);
            }
        }
    }

    /// A key, and whether it is the merge key.
    fn key(&mut self, event: Event<'s>, at: Span) -> Result<(Arc<str>, bool), Failed> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                if text.len() > MAX_KEY {
                    let message =
                        format!("a key is {} bytes long; at most {MAX_KEY} are accepted", text.len());
                    self.sink.error(code::YAML_LIMIT, at, message);
                    return Err(Failed::Told);
                }
                // The same few words are the keys of most maps.
                let key = match self.keys.get(text.as_ref()) {
                    Some(known) => known.clone(),
                    None => {
                        let key: Arc<str> = text.as_ref().into();
                        self.keys.insert(key.clone());
                        key
                    }
                };
                if anchor != 0 {
                    let node = Node::str(at, key.clone());
                    self.anchors.insert(anchor, Anchored { node, weight: 1, height: 1 });
                }
                self.count(1, 0, at)?;
                let merge = style == ScalarStyle::Plain && key.as_ref() == "<<";
                return Ok((key, merge));
            }
            Event::Alias(id) => {
                if let Some(text) = self.anchors.get(&id).and_then(|a| a.node.text()) {
                    return Ok((text.as_str().into(), false));
                }
            }
            _ => {}
        }
        self.sink.error(code::YAML_SYNTAX, at, "a key must be a plain word");
        Err(Failed::Told)
    }

    fn merged(&mut self, value: &Node) -> Result<Vec<Arc<Map>>, Failed> {
        let list = match &value.value {
            Value::Map(map) => return Ok(vec![map.clone()]),
            Value::Null => return Ok(Vec::new()),
            Value::Seq(items) => items.iter().map(|i| i.as_map().cloned()).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        list.ok_or_else(|| {
            let message = "a merge key (`<<`) takes a map or a list of maps";
            self.sink.error(code::YAML_SYNTAX, value.span, message);
            Failed::Told
        })
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Tagged<'_>,
        span: Span,
    ) -> Result<Value, Failed> {
        let Some(tag) = tag else {
            return Ok(match style {
                ScalarStyle::Plain => scalars::plain(text),
                _ => Value::Str(text.into()),
            });
        };
        match tag.core_suffix() {
            Some("str") => Ok(Value::Str(text.into())),
            Some("int" | "bool" | "null" | "float") => Ok(scalars::plain(text)),
            // The tag `!` says only: not plain.
            None if tag.suffix().is_empty() && tag.handle() == "!" => Ok(Value::Str(text.into())),
            _ => {
                self.sink.not_supported(span, &format!("the YAML tag `{}`", tag.original()));
                Err(Failed::Told)
            }
        }
    }

    fn collection_tag(&mut self, tag: Tagged<'_>, wanted: &str, span: Span) -> Result<(), Failed> {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema_tag(wanted) => {
                self.sink.not_supported(span, &format!("the YAML tag `{}`", tag.original()));
                Err(Failed::Told)
            }
            _ => Ok(()),
        }
    }
}
