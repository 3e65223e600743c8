//! What the current task is part of: events that it appends and requests that it makes carry this on, so that a
//! push and all that follows from it is one trace.
//!
//! The spans of a trace: each event is one, made from its id, told of by the process that committed it; what handles it
//! has a span below it, and the events that follow from that are below this one. What lasts has a span of its own id
//! ([`Trace::of`]) that is told of when it has ended ([`crate::Tx::tell`]).

use contracts::{Envelope, trace::Trace};
use spans::{Kind, Name, Span};
use std::{collections::BTreeMap, future::Future};

tokio::task_local! {
    static CURRENT: Trace;
}

/// The trace of what this task is doing, if it is part of one.
pub fn current() -> Option<Trace> {
    CURRENT.try_with(|trace| *trace).ok()
}

/// Does some work as part of a trace; without one, as part of what the task is doing anyway.
pub async fn within<F: Future>(trace: Option<Trace>, work: F) -> F::Output {
    match trace {
        Some(trace) => Box::pin(CURRENT.scope(trace, work)).await,
        None => work.await,
    }
}

/// Does some work as what follows from a message.
pub async fn following<F: Future>(message: &Envelope, work: F) -> F::Output {
    within(after(message), work).await
}

/// The trace of what follows from a message.
pub fn after(message: &Envelope) -> Option<Trace> {
    let trace: Trace = message.trace.as_deref()?.parse().ok()?;
    Some(trace.after(message.id))
}

/// The span of an event that was committed.
pub(crate) fn committed(event: &Envelope, service: &'static str, here: Option<Trace>) -> Option<Span> {
    let trace: Trace = event.trace.as_deref()?.parse().ok()?;
    let span = Span::known(
        trace.after(event.id),
        Some(trace.span),
        service,
        Kind::Producer,
        Name::chosen(&event.kind),
    )?;
    let span = match event.correlation_id {
        Some(pipeline) => span.with("gantry.pipeline.id", pipeline.uuid()),
        None => span,
    };
    let span = span
        .with("gantry.aggregate.kind", Name::chosen(&event.aggregate.kind))
        .with("gantry.aggregate.id", event.aggregate.id)
        .with("gantry.aggregate.version", event.aggregate.version)
        .lasted(event.occurred_at, chrono::Utc::now());
    // Where an event belongs elsewhere than where it was made, both are shown.
    Some(span.linked(here))
}

/// Spans of the handling of these messages, one for each trace among them, below the first message of it.
pub fn handling(service: &'static str, group: &'static str, batch: &[Envelope]) -> Vec<Span> {
    if !spans::recorded() {
        return Vec::new();
    }
    let mut traces: BTreeMap<u128, (Trace, Option<ids::PipelineId>, i64)> = BTreeMap::new();
    for message in batch {
        if let Some(after) = after(message) {
            traces.entry(after.trace).or_insert((after, message.correlation_id, 0)).2 += 1;
        }
    }
    let begun = traces.into_values().filter_map(|(parent, pipeline, many)| {
        let span = Span::begin(Some(parent), service, Kind::Consumer, Name::of("consume", group))?
            .with("messaging.consumer.group.name", group)
            .with("messaging.batch.message_count", many);
        Some(match pipeline {
            Some(pipeline) => span.with("gantry.pipeline.id", pipeline.uuid()),
            None => span,
        })
    });
    begun.collect()
}
