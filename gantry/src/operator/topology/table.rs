//! The suite as people read it: tables, or a picture.

use super::Topology;
use crate::operator::wiring::Wiring;
use bus::{Behind, Subscription, broker::Depth};
use std::time::Duration;

/// Nothing to say.
const NONE: &str = "-";

/// Three tables: services, groups, requests.
pub fn table(topology: &Topology) -> String {
    let mut services = vec![row(["SERVICE", "PARKED", "DEAD", "UNPUBLISHED", "REQUESTS", "ANSWER", "LEADS"])];
    let mut groups =
        vec![row(["GROUP", "READS", "BEHIND", "OLDEST", "PARKED", "DEAD", "QUEUED", "CONSUMERS"])];
    for service in &topology.services {
        let leads = service.leaders.iter().filter_map(|leader| leader.get("role")?.as_str());
        let leads = leads.collect::<Vec<_>>().join(", ");
        let (requests, answer) = queue(service.requests);
        services.push(vec![
            service.service.clone(),
            service.parked.to_string(),
            service.dead_letters.to_string(),
            service.unpublished.as_ref().map_or_else(|| NONE.to_owned(), events),
            requests,
            answer,
            if leads.is_empty() { NONE.to_owned() } else { leads },
        ]);
        for group in &service.groups {
            let (queued, consumers) = queue(group.queue);
            groups.push(vec![
                group.group.clone(),
                group.source.clone(),
                events(&group.behind),
                oldest(&group.behind),
                group.parked.to_string(),
                group.dead_letters.to_string(),
                queued,
                consumers,
            ]);
        }
    }
    let mut asks = vec![row(["WHO", "ASKS", "FOR"])];
    asks.extend(topology.asks.iter().map(|asks| row([&asks.from, &asks.to, &asks.requests.join(", ")])));
    let mut text = [services, groups, asks].map(aligned).join("\n");
    if let Some(error) = &topology.bus.error {
        text.push_str(&format!("\nNothing is known of the broker's queues: {error}\n"));
    }
    text
}

/// A flowchart in Mermaid's language, with what is behind.
pub fn picture(topology: &Topology) -> String {
    let mut wiring =
        Wiring { reads: Vec::new(), asks: topology.asks.clone(), agents: topology.agents.clone() };
    for service in &topology.services {
        wiring.reads.extend(service.groups.iter().map(|group| Subscription {
            service: service.service.clone(),
            group: group.group.clone(),
            source: group.source.clone(),
            events: Vec::new(),
        }));
    }
    wiring.picture(|source, reader| {
        let service = topology.services.iter().find(|service| service.service == reader)?;
        // The slowest of its groups: each reads all of them.
        let slowest = service.groups.iter().filter(|group| group.source == source);
        let slowest = slowest.max_by_key(|group| group.behind.events)?;
        let late = slowest.behind.events > 0 || slowest.behind.at_least;
        late.then(|| format!("{} behind, {}", events(&slowest.behind), oldest(&slowest.behind)))
    })
}

fn row<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn events(behind: &Behind) -> String {
    if behind.at_least { format!("{}+", behind.events) } else { behind.events.to_string() }
}

fn oldest(behind: &Behind) -> String {
    let age = behind.oldest_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    age.map_or_else(
        || NONE.to_owned(),
        |age| match age.as_secs() {
            0 => format!("{}ms", age.as_millis()),
            seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        },
    )
}

/// Messages, and who consumes.
fn queue(queue: Option<Depth>) -> (String, String) {
    match queue {
        Some(Depth { messages, consumers }) => (messages.to_string(), consumers.to_string()),
        None => (NONE.to_owned(), NONE.to_owned()),
    }
}

/// Lines whose cells stand below each other; the last one is as long as it is.
fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::{BusState, Group, Service, Topology},
        *,
    };
    use crate::operator::wiring::Asks;

    fn suite() -> Topology {
        let group = |group: &str, events, at_least, oldest_seconds| Group {
            group: group.to_owned(),
            source: "conductor".to_owned(),
            behind: Behind { events, at_least, oldest_seconds },
            queue: Some(Depth { messages: 2, consumers: 4 }),
            ..Group::default()
        };
        let service = |name: &str, groups| Service { service: name.to_owned(), groups, ..Service::default() };
        Topology {
            bus: BusState { kind: "amqp".to_owned(), error: None },
            services: vec![
                service("conductor", Vec::new()),
                service("contexts", vec![group("contexts.jobs", 0, false, None)]),
                service("dispatcher", vec![group("dispatcher.ready", 3, true, Some(75.4))]),
            ],
            asks: vec![Asks {
                from: "conductor".to_owned(),
                to: "dispatcher".to_owned(),
                requests: vec!["job.explain".to_owned(), "jobs.revoke".to_owned()],
            }],
            agents: vec!["dispatcher".to_owned()],
        }
    }

    #[test]
    fn cells_stand_below_each_other() {
        let said = table(&suite());
        for line in [
            "SERVICE     PARKED  DEAD  UNPUBLISHED  REQUESTS  ANSWER  LEADS",
            "conductor   0       0     -            -         -       -",
            "GROUP             READS      BEHIND  OLDEST  PARKED  DEAD  QUEUED  CONSUMERS",
            "contexts.jobs     conductor  0       -       0       0     2       4",
            "dispatcher.ready  conductor  3+      1m 15s  0       0     2       4",
            "WHO        ASKS        FOR",
            "conductor  dispatcher  job.explain, jobs.revoke",
        ] {
            assert!(said.lines().any(|found| found == line), "{line} is not in\n{said}");
        }
        let mut away = suite();
        away.bus.error = Some("it is away".to_owned());
        assert!(table(&away).ends_with("queues: it is away\n"));
    }

    #[test]
    fn a_picture_names_who_is_late() {
        let picture = picture(&suite());
        assert!(picture.contains("\n  conductor -- \"3+ behind, 1m 15s\" --> dispatcher\n"), "{picture}");
        assert!(picture.contains("\n  conductor --> contexts\n"), "{picture}");
    }
}
