//! Telling the suite how steps go.

use crate::{
    clock::Clock,
    control::{Control, Gone},
};
use agent_api::StepReport;
use ids::Timestamp;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Step reports, sent one after another in the order in which they were made.
pub(crate) struct Reports {
    clock: Clock,
    queue: mpsc::UnboundedSender<(Option<StepReport>, oneshot::Sender<()>)>,
}

impl Reports {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        let clock = control.clock;
        let (queue, mut waiting) = mpsc::unbounded_channel::<(Option<StepReport>, oneshot::Sender<()>)>();
        tokio::spawn(async move {
            while let Some((report, done)) = waiting.recv().await {
                if let Some(report) = report
                    && let Err(Gone::Refused(failure)) = control.post("steps", &report).await
                {
                    tracing::error!(step = report.number, error = %failure, "a step report was refused");
                }
                let _ = done.send(());
            }
        });
        Self { clock, queue }
    }

    /// The time, for what a report says.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Queues a report; the answer comes when it has arrived.
    pub(crate) fn send(&self, report: StepReport) -> oneshot::Receiver<()> {
        self.put(Some(report))
    }

    fn put(&self, report: Option<StepReport>) -> oneshot::Receiver<()> {
        let (done, arrived) = oneshot::channel();
        // Without a receiver the task is over, and `arrived` says so.
        let _ = self.queue.send((report, done));
        arrived
    }

    /// Waits until all reports have arrived.
    pub(crate) async fn settle(&self) {
        let _ = self.put(None).await;
    }
}
