//! Limits of a document, checked before anything is executed (security §5.2).
//!
//! What counts is the document as it would be executed: a fragment counts wherever it is spread, so that a few
//! fragments that spread each other cannot hide a million fields.

use crate::error::Fail;
use async_graphql::Positioned;
use async_graphql::{
    ErrorExtensions, Name, Pos, ServerError, ServerResult, ValidationResult, Variables,
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextParseQuery, NextValidation},
    parser::{
        parse_query,
        types::{Directive, ExecutableDocument, Selection, SelectionSet},
    },
};
use std::{collections::HashMap, sync::Arc};

/// Bytes of a request.
pub const DOCUMENT: usize = 64 << 10;
/// Queries of one request.
pub const BATCH: usize = 5;
/// Rows of a list.
pub const ROWS: i32 = 100;
/// Bytes of an answer.
pub const RESPONSE: usize = 5 << 20;
/// Bytes of a message on a WebSocket.
pub const MESSAGE: usize = 4 << 10;
/// Fields below each other; those of the schema about itself do not count, or no tool could read it.
const DEPTH: usize = 12;
const COMPLEXITY: usize = 2000;
const ALIASES: usize = 30;
const FIELDS: usize = 500;
const DIRECTIVES: usize = 50;
const TOKENS: usize = 5000;

/// Codes of documents that were not executed.
pub const CODES: [&str; 6] = [
    "query_too_deep",
    "query_too_complex",
    "query_too_many_aliases",
    "query_too_many_fields",
    "query_too_many_directives",
    "query_too_many_tokens",
];

/// Cost of a list: as many rows as are asked for.
pub fn list(first: Option<i32>, child: usize) -> usize {
    // Row for row it is cheap: rows of one list are read with one query.
    1 + usize::try_from(first.unwrap_or(20)).unwrap_or(0) * child / 5
}

/// Holds every document to the limits, whichever way it came.
pub struct Limits;

impl ExtensionFactory for Limits {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

#[async_trait::async_trait]
impl Extension for Limits {
    async fn parse_query(
        &self,
        ctx: &ExtensionContext<'_>,
        query: &str,
        variables: &Variables,
        next: NextParseQuery<'_>,
    ) -> ServerResult<ExecutableDocument> {
        hold("query_too_many_tokens", "tokens", tokens(query), TOKENS)?;
        // Before the library looks at it: it follows every spread, and a few fragments that spread each other twice
        // would keep it busy for hours. What cannot be read fails below, with the place.
        if let Ok(document) = parse_query(query) {
            let size = size(&document);
            hold("query_too_deep", "levels", size.depth, DEPTH)?;
            hold("query_too_many_aliases", "aliases", size.aliases, ALIASES)?;
            hold("query_too_many_fields", "fields", size.fields, FIELDS)?;
            hold("query_too_many_directives", "directives", size.directives, DIRECTIVES)?;
        }
        next.run(ctx, query, variables).await
    }

    async fn validation(
        &self,
        ctx: &ExtensionContext<'_>,
        next: NextValidation<'_>,
    ) -> Result<ValidationResult, Vec<ServerError>> {
        let result = next.run(ctx).await?;
        hold("query_too_complex", "units of cost", result.complexity, COMPLEXITY)
            .map_err(|error| vec![error])?;
        Ok(result)
    }
}

fn hold(code: &str, what: &str, found: usize, limit: usize) -> ServerResult<()> {
    if found <= limit {
        return Ok(());
    }
    let message = format!("the document has {found} {what}; at most {limit} are allowed");
    let fail = Fail::new(http::StatusCode::BAD_REQUEST, code, message);
    let error = async_graphql::Error::from(fail).extend_with(|_, extensions| {
        extensions.set("limit", limit as u64);
        extensions.set("actual", found as u64);
    });
    Err(error.into_server_error(Pos::default()))
}

/// What a selection amounts to with all fragments in their places.
#[derive(Clone, Copy, Default)]
struct Size {
    depth: usize,
    fields: usize,
    aliases: usize,
    directives: usize,
}

impl Size {
    /// Beside something else.
    fn add(&mut self, other: Self) {
        self.depth = self.depth.max(other.depth);
        self.fields = self.fields.saturating_add(other.fields);
        self.aliases = self.aliases.saturating_add(other.aliases);
        self.directives = self.directives.saturating_add(other.directives);
    }
}

/// The size of all operations together.
fn size(document: &ExecutableDocument) -> Size {
    let mut known = HashMap::new();
    let mut sum = Size::default();
    for (_, operation) in document.operations.iter() {
        sum.directives = sum.directives.saturating_add(operation.node.directives.len());
        sum.add(of(&operation.node.selection_set.node, document, &mut known));
    }
    sum
}

fn of<'a>(
    set: &'a SelectionSet,
    document: &'a ExecutableDocument,
    known: &mut HashMap<&'a Name, Size>,
) -> Size {
    let mut sum = Size::default();
    let directives = |list: &[Positioned<Directive>]| Size { directives: list.len(), ..Size::default() };
    for item in &set.items {
        match &item.node {
            Selection::Field(field) => {
                let field = &field.node;
                let mut own = of(&field.selection_set.node, document, known);
                // `__schema` and its like: the tools' question is deeper than any of ours.
                own.depth = if field.name.node.starts_with("__") { 0 } else { own.depth + 1 };
                own.fields = own.fields.saturating_add(1);
                own.aliases = own.aliases.saturating_add(usize::from(field.alias.is_some()));
                own.add(directives(&field.directives));
                sum.add(own);
            }
            Selection::InlineFragment(fragment) => {
                sum.add(of(&fragment.node.selection_set.node, document, known));
                sum.add(directives(&fragment.node.directives));
            }
            Selection::FragmentSpread(spread) => {
                let name = &spread.node.fragment_name.node;
                let found = match known.get(name) {
                    Some(found) => *found,
                    None => {
                        // Found again on its own way: a circle, which validation refuses.
                        known.insert(name, Size::default());
                        let fragment = document.fragments.get(name);
                        let found = fragment
                            .map(|fragment| of(&fragment.node.selection_set.node, document, known))
                            .unwrap_or_default();
                        known.insert(name, found);
                        found
                    }
                };
                sum.add(found);
                sum.add(directives(&spread.node.directives));
            }
        }
    }
    sum
}

/// Names, numbers, texts and signs of a document. It is not read for its meaning here, only counted: a wrong
/// document fails where it is parsed.
fn tokens(query: &str) -> usize {
    let bytes = query.as_bytes();
    let (mut at, mut count) = (0, 0);
    while let Some(byte) = bytes.get(at).copied() {
        let rest = &bytes[at..];
        at += match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b',' => 1,
            b'#' => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            _ => {
                count += 1;
                match byte {
                    b'"' if rest.starts_with(b"\"\"\"") => block_text(rest),
                    b'"' => plain_text(rest),
                    b'.' if rest.starts_with(b"...") => 3,
                    b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => {
                        let word =
                            |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'+' | b'-');
                        rest.iter().position(|b| !word(b)).unwrap_or(rest.len())
                    }
                    _ => 1,
                }
            }
        };
    }
    count
}

fn plain_text(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    rest.len()
}

fn block_text(rest: &[u8]) -> usize {
    let mut at = 3;
    while at < rest.len() {
        if rest[at..].starts_with(b"\\\"\"\"") {
            at += 4;
        } else if rest[at..].starts_with(b"\"\"\"") {
            return at + 3;
        } else {
            at += 1;
        }
    }
    rest.len()
}
