//! Each limit of a GraphQL document (security §5.2) at n and at n + 1.

use crate::support::World;
use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// `levels` fields below each other.
fn deep(levels: usize) -> String {
    // project › pipelines › nodes › project › pipelines › …
    let names = ["project(slug: \"git/local/deep\")", "pipelines(first: 1)", "nodes", "project"];
    let mut query = String::from("{ ");
    for level in 0..levels {
        let name = match level {
            0 => names[0],
            _ if level + 1 == levels => "__typename",
            _ => [names[1], names[2], names[3]][(level - 1) % 3],
        };
        query.push_str(name);
        query.push_str(if level + 1 == levels { "" } else { " { " });
    }
    query.push_str(&" }".repeat(levels));
    query
}

fn refused(answer: &Value) -> Option<&str> {
    answer["errors"][0]["message"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_taken_at_its_limits_and_refused_beyond_them() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let aliases = |count: usize| {
        let all: Vec<_> = (0..count).map(|at| format!("a{at}: __typename")).collect();
        format!("{{ {} }}", all.join(" "))
    };
    let fields = |count: usize| format!("{{ {} }}", "__typename ".repeat(count));
    let directives =
        |count: usize| format!("{{ viewer {{ login {} }} }}", "@include(if: true) ".repeat(count));
    let padded = |bytes: usize| {
        let frame = json!({ "query": "{ __typename }" }).to_string().len();
        json!({ "query": format!("{{ __typename }}{}", " ".repeat(bytes - frame)) })
    };
    let cases: [(&str, &str, String, String); 4] = [
        ("depth", "query_too_deep", deep(12), deep(13)),
        ("aliases", "too_many_aliases", aliases(30), aliases(31)),
        ("fields", "too_many_fields", fields(500), fields(501)),
        ("directives", "too_many_directives", directives(50), directives(51)),
    ];
    for (what, code, within, beyond) in cases {
        let (status, answer) = world.graphql(&within).await?;
        ensure!(status == 200 && refused(&answer).is_none(), "{what} at the limit: {status} {answer}");
        let (status, answer) = world.graphql(&beyond).await?;
        ensure!(refused(&answer).is_some(), "{what} beyond the limit: {status} {answer}");
        ensure!(answer["data"].is_null(), "{what} beyond the limit was executed: {answer}");
        println!("{what}: {status} {code} {}", answer["errors"][0]);
    }
    let (status, _) = world.suite.post("/graphql", &padded(64 << 10)).await?;
    ensure!(status == 200, "a request of 64 KiB: {status}");
    let (status, _) = world.suite.post("/graphql", &padded((64 << 10) + 1)).await?;
    ensure!(status == 400 || status == 413, "a request of a byte more: {status}");
    for (first, fine) in [(100, true), (101, false), (1, true), (0, false)] {
        let (_, answer) =
            world.graphql(&format!("{{ projects(first: {first}) {{ nodes {{ id }} }} }}")).await?;
        ensure!(refused(&answer).is_none() == fine, "a page of {first}: {answer}");
    }
    complexity(&world).await?;
    // The query that common tools ask first stays possible.
    let introspection =
        "{ __schema { types { name fields { name type { name ofType { name ofType { name } } } } } } }";
    let (status, answer) = world.graphql(introspection).await?;
    ensure!(status == 200 && refused(&answer).is_none(), "introspection: {status} {answer}");
    world.suite.down().await
}

/// The greatest page whose cost is within the limit is answered; one row more is not.
async fn complexity(world: &World) -> anyhow::Result<()> {
    let query = |first: u32, fields: usize| {
        let inside = "id number status state createdAt revision branch tag subject projectSlug url "
            .split_inclusive(' ')
            .cycle()
            .take(fields)
            .collect::<String>();
        format!("{{ pipelines(first: {first}) {{ nodes {{ {inside} }} }} }}")
    };
    let mut taken = Vec::new();
    for fields in [10, 50, 90, 95, 100, 105, 110, 150, 200] {
        let (_, answer) = world.graphql(&query(100, fields)).await?;
        taken.push((fields, refused(&answer).is_none()));
    }
    let last = taken.iter().rposition(|(_, fine)| *fine).context("no query was taken")?;
    ensure!(taken[..=last].iter().all(|(_, fine)| *fine), "complexity is judged unevenly: {taken:?}");
    ensure!(last + 1 < taken.len(), "no query was too complex: {taken:?}");
    Ok(())
}
