//! Nomad's stream of events: says when a look is worth it.

use crate::api::{Api, Failure, Place};
use futures::StreamExt;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Between two attempts to listen. Meanwhile those who look do so by their own clock.
const AGAIN: Duration = Duration::from_secs(3);
/// Longest line that is kept: events carry whole allocations.
const LONGEST: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Line {
    events: Vec<Event>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    payload: Payload,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Payload {
    allocation: Option<Allocation>,
    evaluation: Option<Evaluation>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Allocation {
    client_status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Evaluation {
    status: String,
}

/// Whether a line tells that an agent has ended, or that one finds no machine. That one has started its lease tells.
fn matters(line: &[u8]) -> bool {
    let Line { events } = serde_json::from_slice(line).unwrap_or_default();
    events.iter().any(|Event { payload }| {
        let ended =
            |found: &Allocation| ["complete", "failed", "lost"].contains(&found.client_status.as_str());
        payload.allocation.as_ref().is_some_and(ended)
            || payload.evaluation.as_ref().is_some_and(|found| found.status == "blocked")
    })
}

/// Listens for ever.
pub(crate) async fn listen(api: Api, place: Place, changes: Arc<Notify>) {
    loop {
        match follow(&api, &place, &changes).await {
            Ok(()) => tracing::debug!(?place, "Nomad has ended the stream of its events"),
            Err(error) => {
                tracing::warn!(?place, %error, "Nomad's events are not heard; it is asked from time to time")
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow(api: &Api, place: &Place, changes: &Notify) -> Result<(), Failure> {
    let mut stream = api.events(place).await?.bytes_stream();
    // What happened while nobody listened is not told again.
    changes.notify_one();
    let mut line = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| Failure::Away("its stream of events".to_owned(), error.to_string()))?;
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            let whole = part.ends_with(b"\n");
            if line.len() > LONGEST || (whole && matters(&line)) {
                changes.notify_one();
            }
            if whole || line.len() > LONGEST {
                line.clear();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_blocked_evaluations_matter_and_nothing_else() {
        let allocation = |status: &str| {
            format!(
                r#"{{"Index":7,"Events":[{{"Topic":"Allocation","Payload":{{"Allocation":{{"ClientStatus":"{status}"}}}}}}]}}"#
            )
        };
        for (status, wanted) in [("complete", true), ("failed", true), ("lost", true), ("running", false)] {
            assert_eq!(matters(allocation(status).as_bytes()), wanted, "{status}");
        }
        let blocked = br#"{"Events":[{"Payload":{"Evaluation":{"Status":"blocked"}}}]}"#;
        assert!(matters(blocked));
        assert!(!matters(b"{}\n"), "a sign of life");
        assert!(!matters(b"not json\n"));
    }
}
