//! Who talks to whom, as the code has it: which group reads which events of which service, and which service asks which.
//!
//! A process knows only its own groups, so the facts of all are kept in `wiring.json`. A test makes them anew from the code
//! and refuses what differs.

use anyhow::Context;
use bus::Subscription;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt::Write};

/// Where requests of operators come from, which are of no service.
pub const OPERATOR: &str = "operator";

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// Groups with the events that they read.
    pub reads: Vec<Subscription>,
    /// Who asks whom.
    pub asks: Vec<Asks>,
    /// Services that agents call over HTTP.
    pub agents: Vec<String>,
}

/// The requests of one service to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Asks {
    /// Who asks.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// Names of the requests.
    pub requests: Vec<String>,
}

impl Wiring {
    /// That of this build.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn of_this_build() -> anyhow::Result<Self> {
        serde_json::from_str(include_str!("wiring.json")).context("the wiring of this build cannot be read")
    }

    /// Types of events that a group wants of a source; `None`: it is not of this build.
    pub fn wanted(&self, group: &str, source: &str) -> Option<&[String]> {
        let known = self.reads.iter().find(|read| read.group == group && read.source == source)?;
        Some(&known.events)
    }

    /// A flowchart in Mermaid's language, which Markdown pages show as a picture. `note` says what is written at the events of
    /// one service that another reads; solid lines are events, dotted ones requests.
    pub fn picture(&self, note: impl Fn(&str, &str) -> Option<String>) -> String {
        let mut picture = String::from("flowchart LR\n  people([people]) --> api\n");
        for service in &self.agents {
            let _ = writeln!(picture, "  agents([agents]) --> {service}");
        }
        let mut events: BTreeSet<(&str, &str)> = BTreeSet::new();
        for read in self.reads.iter().filter(|read| read.source != read.service) {
            events.insert((&read.source, &read.service));
        }
        for (source, reader) in events {
            let _ = match note(source, reader) {
                Some(note) => writeln!(picture, "  {source} -- \"{note}\" --> {reader}"),
                None => writeln!(picture, "  {source} --> {reader}"),
            };
        }
        for asks in &self.asks {
            let _ = writeln!(picture, "  {} -.-> {}", asks.from, asks.to);
        }
        picture
    }

    /// The page of the documentation.
    pub fn page(&self) -> String {
        let mut page = format!(
            "# Who talks to whom\n\n\
             Made from the code by `GANTRY_UPDATE_DOCS=1 cargo test --profile ci -p gantry-server --lib wiring`. \
             `gantry admin topology` shows the same of a running suite, with lags and queues, and `--picture` draws it.\n\n\
             Solid lines are events, from who appends them to who handles them; dotted ones are requests, from who asks to who \
             answers. Both go over the bus. People and agents come over HTTP.\n\n\
             ```mermaid\n{}```\n\n## Events\n\n| group | reads | which |\n|---|---|---|\n",
            self.picture(|_, _| None)
        );
        for read in &self.reads {
            let _ = writeln!(page, "| `{}` | {} | {} |", read.group, read.source, read.events.join(", "));
        }
        page.push_str("\n## Requests\n\n| who | asks | for |\n|---|---|---|\n");
        for asks in &self.asks {
            let _ = writeln!(page, "| {} | {} | {} |", asks.from, asks.to, asks.requests.join(", "));
        }
        page
    }
}

#[cfg(test)]
mod tests;
