//! Steps of the agent's own: the spin-up, the variables, the logs of service containers.

use crate::{
    output::{Output, Stream},
    steps::Reports,
};
use agent_api::StepReport;
use ids::StepId;
use std::{io, sync::Arc};

/// A step whose text grows while it runs. Dropped before [`OwnStep::end`] it has failed.
pub(crate) struct OwnStep {
    report: StepReport,
    stream: Option<Stream>,
    reports: Arc<Reports>,
}

impl OwnStep {
    pub(crate) fn open(
        output: &Output,
        reports: &Arc<Reports>,
        number: u32,
        name: &str,
        background: bool,
    ) -> io::Result<Self> {
        let report = StepReport {
            step_id: StepId::new(),
            number,
            name: name.to_owned(),
            status: "running".into(),
            bash_command: None,
            exit_code: None,
            background,
            started_at: reports.now(),
            ended_at: None,
        };
        let registered = reports.send(report.clone());
        let stream = Some(output.open(report.step_id, registered)?);
        Ok(Self { report, stream, reports: Arc::clone(reports) })
    }

    /// A step that is only a text.
    pub(crate) fn show(
        output: &Output,
        reports: &Arc<Reports>,
        number: u32,
        name: &str,
        text: &str,
    ) -> io::Result<()> {
        let now = reports.now();
        let report = StepReport {
            step_id: StepId::new(),
            number,
            name: name.to_owned(),
            status: "success".into(),
            bash_command: None,
            exit_code: None,
            background: false,
            started_at: now,
            ended_at: Some(now),
        };
        let mut stream = output.open(report.step_id, reports.send(report))?;
        stream.write(text.as_bytes())?;
        stream.finish()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => stream.write(bytes),
            None => Ok(()),
        }
    }

    /// A line of its own.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => stream.note(text),
            None => Ok(()),
        }
    }

    pub(crate) fn end(mut self, status: &str) -> io::Result<()> {
        self.close(status)
    }

    fn close(&mut self, status: &str) -> io::Result<()> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        stream.finish()?;
        self.report.status = status.to_owned();
        self.report.ended_at = Some(self.reports.now());
        drop(self.reports.send(self.report.clone()));
        Ok(())
    }
}

impl Drop for OwnStep {
    fn drop(&mut self) {
        // Its spool may be what failed.
        let _ = self.close("infrastructure_fail");
    }
}
