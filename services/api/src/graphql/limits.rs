//! Limits of a document that the schema builder does not have.

use crate::error::Fail;
use async_graphql::{
    ServerResult, Variables,
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextParseQuery},
    parser::types::{ExecutableDocument, Selection, SelectionSet},
};
use std::sync::Arc;

const ALIASES: usize = 30;
const FIELDS: usize = 500;

/// Cost of a list: as many rows as are asked for.
pub fn list(first: Option<i32>, child: usize) -> usize {
    // Row for row it is cheap: rows of one list are read with one query.
    1 + usize::try_from(first.unwrap_or(20)).unwrap_or(0) * child / 5
}

/// Counts aliases and fields before execution.
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
        let document = next.run(ctx, query, variables).await?;
        let (mut aliases, mut fields) = (0, 0);
        let operations = document.operations.iter().map(|(_, op)| &op.node.selection_set.node);
        let fragments = document.fragments.values().map(|fragment| &fragment.node.selection_set.node);
        for set in operations.chain(fragments) {
            count(set, &mut aliases, &mut fields);
        }
        for (found, limit, what) in [(aliases, ALIASES, "aliases"), (fields, FIELDS, "fields")] {
            if found > limit {
                let fail =
                    Fail::invalid(format!("the document has {found} {what}; at most {limit} are allowed"));
                return Err(async_graphql::Error::from(fail).into_server_error(async_graphql::Pos::default()));
            }
        }
        Ok(document)
    }
}

fn count(set: &SelectionSet, aliases: &mut usize, fields: &mut usize) {
    for item in &set.items {
        match &item.node {
            Selection::Field(field) => {
                *fields += 1;
                *aliases += usize::from(field.node.alias.is_some());
                count(&field.node.selection_set.node, aliases, fields);
            }
            Selection::InlineFragment(fragment) => count(&fragment.node.selection_set.node, aliases, fields),
            Selection::FragmentSpread(_) => {}
        }
    }
}
