//! Spans go to a collector as OTLP over HTTP, in protobuf.
//!
//! Sending is nobody's to wait for: spans lie in a queue of [`QUEUE`], a task sends what gathers there, and what does not
//! fit, or cannot be delivered, is dropped and counted (`gantry.telemetry.spans`, by what became of them). A collector
//! that is away costs a few requests a minute and one line in the log.

mod message;
mod send;

pub use send::{Refused, Target};

use spans::{Recorder, Span};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Spans that may wait to be sent: some megabytes.
pub const QUEUE: usize = 8192;
/// Spans of one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for more.
const GATHER: Duration = Duration::from_secs(1);

/// What all spans of this process say of it.
#[derive(Clone, Debug)]
pub struct Process {
    /// Version of the program.
    pub version: String,
    /// Id of this run of it.
    pub instance: String,
}

/// Where spans go that have ended.
pub struct Exporter {
    queue: mpsc::Sender<Span>,
}

impl Recorder for Exporter {
    fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            count("no_room", 1);
        }
    }
}

/// Ends the sending.
#[derive(Debug)]
pub struct Flush {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Flush {
    /// Sends what is left, for at most so long.
    pub async fn within(mut self, limit: Duration) {
        self.end.cancel();
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Begins to send to a collector. To be called inside the runtime.
pub fn start(target: Target, process: Process) -> (Exporter, Flush) {
    let (queue, spans) = mpsc::channel(QUEUE);
    let end = CancellationToken::new();
    let task = tokio::spawn(run(target, process, spans, end.clone()));
    (Exporter { queue }, Flush { end, task })
}

async fn run(target: Target, process: Process, mut spans: mpsc::Receiver<Span>, end: CancellationToken) {
    let mut away = false;
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            // What is in the queue by now is still received.
            () = end.cancelled(), if !spans.is_closed() => {
                spans.close();
                continue;
            }
            received = spans.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    return;
                }
            }
        }
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH && !end.is_cancelled() {
            let room = BATCH - batch.len();
            let more = tokio::select! {
                () = end.cancelled() => break,
                more = timeout_at(until, spans.recv_many(&mut batch, room)) => more,
            };
            if !matches!(more, Ok(received) if received > 0) {
                break;
            }
        }
        deliver(&target, &process, batch, &mut away).await;
    }
}

/// Sends a batch. Says once that the collector is away, and once that it is back.
async fn deliver(target: &Target, process: &Process, batch: Vec<Span>, away: &mut bool) {
    let many = batch.len() as u64;
    match target.send(message::of(&batch, process)).await {
        Ok(rejected) => {
            let rejected = rejected.min(many);
            count("sent", many - rejected);
            count("rejected", rejected);
            if std::mem::take(away) {
                tracing::info!(collector = target.at(), "traces are delivered again");
            }
        }
        Err(error) => {
            count("undelivered", many);
            if !std::mem::replace(away, true) {
                tracing::warn!(collector = target.at(), %error, "traces are not delivered; they are dropped until they are");
            }
        }
    }
}

fn count(outcome: &'static str, many: u64) {
    if many > 0 {
        metrics::counter!("gantry.telemetry.spans", "outcome" => outcome).increment(many);
    }
}
