//! Each limit of a GraphQL document (security §5.2) at n and at n + 1.

use crate::support::World;
use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// Twelve fields below each other, or thirteen with a leaf of two.
fn deep(leaf: &str) -> String {
    let project = "pipelines(first: 1) { nodes { project { ";
    let last = "pipelines(first: 1) { nodes { workflows { jobs { steps { ";
    format!("{{ {project}{project}{last}{leaf}{} }}", " }".repeat(11))
}

/// The code of a refusal.
fn code(answer: &Value) -> Option<&str> {
    answer["errors"][0]["extensions"]["code"].as_str()
}

fn fields(count: usize) -> String {
    format!("{{ {} }}", "__typename ".repeat(count))
}

// Rules: graphql.limits
#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_taken_at_its_limits_and_refused_beyond_them() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let aliases = |count: usize| {
        let all: Vec<_> = (0..count).map(|at| format!("a{at}: __typename")).collect();
        format!("{{ {} }}", all.join(" "))
    };
    let directives =
        |count: usize| format!("{{ viewer {{ login {} }} }}", "@include(if: true) ".repeat(count));
    let cases = [
        ("query_too_deep", deep("name"), deep("log { bytes }")),
        ("query_too_many_aliases", aliases(30), aliases(31)),
        ("query_too_many_fields", fields(500), fields(501)),
        ("query_too_many_directives", directives(50), directives(51)),
        // With the braces; what is too many for one limit is not yet for the other.
        ("query_too_many_tokens", fields(4998), fields(4999)),
    ];
    for (wanted, within, beyond) in cases {
        let (status, answer) = world.graphql(&within).await?;
        ensure!(code(&answer) != Some(wanted), "at the limit: {status} {answer}");
        ensure!(status == 200 || wanted == "query_too_many_tokens", "at the limit: {status} {answer}");
        let (status, answer) = world.graphql(&beyond).await?;
        ensure!(status == 400 && code(&answer) == Some(wanted), "beyond {wanted}: {status} {answer}");
        ensure!(answer["data"].is_null(), "beyond {wanted} it was executed: {answer}");
    }
    complexity(&world).await?;
    sizes(&world).await?;
    world.suite.down().await
}

/// The cost of a page grows with its rows: exactly 2000 is answered, one more is not.
async fn complexity(world: &World) -> anyhow::Result<()> {
    let query = |more: u64| {
        let more = "login ".repeat(usize::try_from(more).unwrap_or(0));
        let inside = "id ".repeat(97);
        format!("{{ pipelines(first: 100) {{ nodes {{ {inside} }} }} viewer {{ {more} }} }}")
    };
    // A refusal says what the document costs.
    let (_, answer) = world.graphql(&query(200)).await?;
    let found = |key: &str| answer["errors"][0]["extensions"][key].as_u64();
    let (limit, actual) = found("limit").zip(found("actual")).with_context(|| answer.to_string())?;
    ensure!(
        limit == 2000 && actual > limit && actual - limit < 200,
        "the limit is {limit}, the cost {actual}"
    );
    let fits = 200 - (actual - limit);
    let (status, answer) = world.graphql(&query(fits)).await?;
    ensure!(status == 200 && code(&answer).is_none(), "a cost of 2000: {status} {answer}");
    let (status, answer) = world.graphql(&query(fits + 1)).await?;
    ensure!(status == 400 && code(&answer) == Some("query_too_complex"), "a cost of 2001: {status} {answer}");
    Ok(())
}

/// Bytes of a request, rows of a page, requests of a batch.
async fn sizes(world: &World) -> anyhow::Result<()> {
    let padded = |bytes: usize| {
        let frame = json!({ "query": "{ __typename }" }).to_string().len();
        json!({ "query": format!("{{ __typename }}{}", " ".repeat(bytes - frame)) })
    };
    let (status, _) = world.suite.post("/graphql", &padded(64 << 10)).await?;
    ensure!(status == 200, "a request of 64 KiB: {status}");
    let (status, answer) = world.suite.post("/graphql", &padded((64 << 10) + 1)).await?;
    ensure!(status == 413 && code(&answer) == Some("body_too_large"), "a byte more: {status} {answer}");
    for (first, fine) in [(100, true), (101, false), (1, true), (0, false)] {
        let (_, answer) =
            world.graphql(&format!("{{ projects(first: {first}) {{ nodes {{ id }} }} }}")).await?;
        ensure!(answer["errors"].is_null() == fine, "a page of {first}: {answer}");
    }
    let batch = |count: usize| Value::from(vec![json!({ "query": "{ __typename }" }); count]);
    let (status, answer) = world.suite.post("/graphql", &batch(5)).await?;
    ensure!(
        status == 200 && answer.as_array().is_some_and(|all| all.len() == 5),
        "a batch: {status} {answer}"
    );
    let (status, answer) = world.suite.post("/graphql", &batch(6)).await?;
    ensure!(status == 400 && code(&answer) == Some("batch_too_large"), "a batch of 6: {status} {answer}");
    Ok(())
}
