//! What the current task is part of: events that it appends and requests that it makes carry this on, so that a
//! push and all that follows from it is one trace.

use contracts::{Envelope, trace::Trace};
use std::future::Future;

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
