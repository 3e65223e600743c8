//! Live streams: they tell what changes, and go on where they broke off.

use crate::support::{LIMIT, World};
use anyhow::{Context, bail, ensure};
use futures::{SinkExt, StreamExt};
use gantry_e2e::until;
use serde_json::{Value, json};
use std::fs;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

/// A job that prints numbered lines until it is told to end.
fn config(stop: &str) -> String {
    format!(
        "version: 2.1\njobs:\n  talk:\n    machine: true\n    steps:\n      - run:\n          name: talk\n          command: |\n            \
         i=0; until test -e {stop}; do i=$((i + 1)); echo \"line $i\"; sleep 0.02; done; echo \"$i lines\"\n\
         workflows:\n  main:\n    jobs: [talk]\n"
    )
}

/// Text of a stream until `enough` of it is there, then the connection is broken off.
async fn read(world: &World, path: &str, enough: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let mut answer = world.suite.request("GET", path).send().await?.error_for_status()?;
    gather(&mut answer, enough).await
}

async fn gather(answer: &mut reqwest::Response, enough: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let mut text = String::new();
    tokio::time::timeout(LIMIT, async {
        while !enough(&text) {
            match answer.chunk().await? {
                Some(chunk) => text.push_str(&String::from_utf8_lossy(&chunk)),
                None => break,
            }
        }
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("the stream says no more than {text}"))??;
    Ok(text)
}

/// Data of the events that arrived whole.
fn events(text: &str) -> Vec<Value> {
    let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let data = whole.lines().filter_map(|line| line.strip_prefix("data:"));
    data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect()
}

// Rules: route.logs-tail
#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_broke_off_goes_on_without_gap_or_repeat() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    // Jobs may run as another user.
    let stop = std::env::temp_dir().join(format!("gantry-stop-{}", std::process::id()));
    let pipeline = world.push("tail", &config(&stop.display().to_string())).await?;
    let workflow = world.workflow(&pipeline, |_| true).await?;
    let step = until("the step", LIMIT, || async {
        let job = world.job(&workflow, "talk").await?;
        let build =
            world.suite.get(&format!("/api/v1.1/project/git/local/tail/{}", job["job_number"])).await?;
        let step =
            build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "talk").cloned();
        Ok(step.and_then(|step| Some(step["actions"][0]["step_id"].as_str()?.to_owned())))
    })
    .await?;
    let (mut seen, mut offset) = (String::new(), 0);
    for round in 0..6 {
        if round == 5 {
            fs::write(&stop, "")?;
        }
        let path = format!("/logs/{step}/tail?offset={offset}");
        let text = read(&world, &path, |text| {
            let last = round == 5 && text.contains("event: end");
            last || (round < 5 && events(text).iter().filter(|event| event["text"].is_string()).count() >= 2)
        })
        .await?;
        for event in events(&text).iter().filter(|event| event["text"].is_string()) {
            ensure!(event["offset"] == offset, "after {offset} comes {event}");
            seen.push_str(event["text"].as_str().unwrap_or_default());
            offset = event["next"].as_u64().context("no next")?;
        }
    }
    fs::remove_file(&stop)?;
    let whole = String::from_utf8(world.suite.bytes(&format!("/logs/{step}/raw")).await?)?;
    ensure!(seen == whole, "the pieces are {seen:?}, the log is {whole:?}");
    world.suite.down().await
}

const HELD: &str = "version: 2.1
jobs:
  after: { machine: true, steps: [{ run: echo after }] }
workflows:
  main:
    jobs:
      - hold: { type: approval }
      - after: { requires: [hold] }
";

async fn approve(world: &World, pipeline: &str) -> anyhow::Result<()> {
    let workflow = world.workflow(pipeline, |workflow| workflow["status"] == "on_hold").await?;
    let hold = world.job(&workflow, "hold").await?;
    let path = format!(
        "/api/v2/workflow/{}/approve/{}",
        workflow["id"].as_str().unwrap_or_default(),
        hold["id"].as_str().unwrap_or_default()
    );
    let (status, answer) = world.suite.post(&path, &json!({})).await?;
    ensure!(status == 202, "{status} {answer}");
    Ok(())
}

// Rules: route.graphql-stream-pipeline, route.graphql-stream-pipelines
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_over_events_hear_of_every_change() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let pipeline = world.push("events", HELD).await?;
    let subscribe =
        |query: String| world.suite.request("POST", "/graphql/stream").json(&json!({ "query": query }));
    let one = format!("subscription {{ pipeline(id: \"{pipeline}\") {{ status workflows {{ status }} }} }}");
    let all = "subscription { pipelines(projectSlug: \"git/local/events\") { id status } }".to_owned();
    let mut one = subscribe(one).send().await?.error_for_status()?;
    let mut all = subscribe(all).send().await?.error_for_status()?;
    // The first answer is what is now.
    let first = gather(&mut one, |text| !events(text).is_empty()).await?;
    ensure!(first.contains("event: next"), "the first event is {first}");
    approve(&world, &pipeline).await?;
    let so = |path: &'static str| {
        move |text: &str| events(text).iter().any(|event| event["data"][path]["status"] == "success")
    };
    gather(&mut one, so("pipeline")).await?;
    let heard = gather(&mut all, so("pipelines")).await?;
    ensure!(heard.contains(&pipeline), "the project's events are {heard}");
    world.suite.down().await
}

// Rules: route.graphql-ws
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_over_a_web_socket_hear_of_every_change() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let pipeline = world.push("socket", HELD).await?;
    let url = format!("{}/graphql/ws", world.suite.url.replacen("http", "ws", 1));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
    // Without a token nothing is answered.
    let (mut socket, _) = connect_async(request.clone()).await?;
    send(&mut socket, json!({ "type": "connection_init", "payload": { "token": "nonsense" } })).await?;
    let refused = next(&mut socket).await;
    ensure!(!refused.is_ok_and(|answer| answer["type"] == "connection_ack"), "nonsense opens the socket");
    let (mut socket, _) = connect_async(request).await?;
    send(&mut socket, json!({ "type": "connection_init", "payload": { "token": world.suite.token } }))
        .await?;
    ensure!(next(&mut socket).await?["type"] == "connection_ack", "the token does not open the socket");
    let query = format!("subscription {{ pipeline(id: \"{pipeline}\") {{ status }} }}");
    send(&mut socket, json!({ "id": "1", "type": "subscribe", "payload": { "query": query } })).await?;
    ensure!(next(&mut socket).await?["type"] == "next", "what is now is not told");
    approve(&world, &pipeline).await?;
    loop {
        let answer = next(&mut socket).await?;
        if answer["payload"]["data"]["pipeline"]["status"] == "success" {
            break;
        }
    }
    world.suite.down().await
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn send(socket: &mut Socket, message: Value) -> anyhow::Result<()> {
    Ok(socket.send(Message::text(message.to_string())).await?)
}

async fn next(socket: &mut Socket) -> anyhow::Result<Value> {
    loop {
        match tokio::time::timeout(LIMIT, socket.next()).await?.context("the socket ended")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(frame) => bail!("the socket was closed: {frame:?}"),
            _ => {}
        }
    }
}
