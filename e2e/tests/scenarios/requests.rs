//! Requests to the public API before a scenario begins and after it has ended.

use crate::{
    expected::{Expected, Request},
    run::{self, Names},
};
use anyhow::{Context, bail, ensure};
use gantry_e2e::Suite;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Lists may be two seconds behind (architecture §5); a loaded machine may be slower.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends the scenario's requests one after another. A GET is repeated until its answer is as expected.
pub async fn perform(suite: &Suite, expected: &Expected, names: &mut Names) -> anyhow::Result<()> {
    if expected.requests.is_empty() {
        return Ok(());
    }
    know(suite, names).await?;
    send_all(suite, &expected.requests, names).await
}

/// Sends what a scenario needs before its push.
pub async fn prepare(suite: &Suite, expected: &Expected, names: &mut Names) -> anyhow::Result<()> {
    if expected.before.is_empty() {
        return Ok(());
    }
    know(suite, names).await?;
    send_all(suite, &expected.before, names).await
}

/// Names the project and its organisation.
async fn know(suite: &Suite, names: &mut Names) -> anyhow::Result<()> {
    let project = suite.get(&format!("/api/v2/project/{}", names["slug"])).await?;
    names.insert("project".to_owned(), project["id"].as_str().unwrap_or_default().to_owned());
    names.insert("org".to_owned(), run::organization(suite).await?.as_str().unwrap_or_default().to_owned());
    Ok(())
}

async fn send_all(suite: &Suite, requests: &[Request], names: &mut Names) -> anyhow::Result<()> {
    for request in requests {
        let (method, path) = line(request)?;
        let path = fill(path, names);
        let begun = Instant::now();
        let answer = loop {
            let result = send(suite, request, method, &path, names).await;
            match result {
                Ok(answer) => break answer,
                Err(_) if method == "GET" && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error.context(format!("{method} {path}"))),
            }
        };
        for (name, pointer) in &request.keep {
            let found = answer.pointer(pointer).with_context(|| format!("{path}: no {pointer}: {answer}"))?;
            let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            names.insert(name.clone(), text);
        }
    }
    Ok(())
}

fn line(request: &Request) -> anyhow::Result<(&'static str, &str)> {
    let all = [
        ("GET", &request.get),
        ("POST", &request.post),
        ("PUT", &request.put),
        ("PATCH", &request.patch),
        ("DELETE", &request.delete),
    ];
    let mut set = all.into_iter().filter_map(|(method, path)| Some((method, path.as_deref()?)));
    match (set.next(), set.next()) {
        (Some(found), None) => Ok(found),
        (None, None) if request.graphql.is_some() => Ok(("POST", "/graphql")),
        _ => bail!("a request has exactly one of get, post, put, patch and delete"),
    }
}

async fn send(
    suite: &Suite,
    request: &Request,
    method: &str,
    path: &str,
    names: &Names,
) -> anyhow::Result<Value> {
    let mut call =
        if request.anonymous { suite.anonymous(method, path) } else { suite.request(method, path) };
    for (name, value) in &request.headers {
        call = call.header(name, fill(value, names));
    }
    let body = match (&request.body, &request.graphql) {
        (Some(body), None) => Some(fill_all(body, names)),
        (None, Some(query)) => Some(json!({ "query": fill(query, names) })),
        (Some(_), Some(_)) => bail!("a request has a body or a GraphQL document"),
        (None, None) => None,
    };
    if let Some(body) = body {
        call = call.json(&body);
    }
    let answer = call.send().await?;
    let status = answer.status().as_u16();
    let text = answer.text().await?;
    ensure!(status == request.status, "answered {status}: {text}");
    for part in &request.text {
        let part = fill(part, names);
        ensure!(text.contains(&part), "the answer lacks {part:?}: {text}");
    }
    for part in &request.lacks {
        let part = fill(part, names);
        ensure!(!text.contains(&part), "the answer holds {part:?}: {text}");
    }
    let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if let Some(wanted) = &request.holds {
        let wanted = fill_all(wanted, names);
        ensure!(holds(&answer, &wanted), "the answer does not hold {wanted}: {text}");
    }
    Ok(answer)
}

/// Whether everything that is wanted is there. Each wanted item of a list is one of the found ones.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            wanted.is_empty() == found.is_empty()
                && wanted.iter().all(|wanted| found.iter().any(|found| holds(found, wanted)))
        }
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        _ => found == wanted,
    }
}

fn fill(text: &str, names: &Names) -> String {
    let mut text = text.to_owned();
    for (name, value) in names {
        text = text.replace(&format!("@{name}@"), value);
    }
    text
}

fn fill_all(value: &Value, names: &Names) -> Value {
    match value {
        Value::String(text) => Value::String(fill(text, names)),
        Value::Array(items) => items.iter().map(|item| fill_all(item, names)).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, value)| (fill(key, names), fill_all(value, names))).collect()
        }
        other => other.clone(),
    }
}
