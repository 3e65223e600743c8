//! Steps as spans. An agent reaches nobody but the suite, so what it reports is told of here, in its name.

use crate::task::Lease;
use agent_api::StepReport;
use ids::TaskId;
use spans::{Kind, Name, Span};

/// The program whose work a step is.
const AGENT: &str = "runner";

/// A step that has ended.
pub(crate) fn span(lease: &Lease, task: TaskId, report: &StepReport) -> Option<Span> {
    let (trace, ended) = (lease.trace?, report.ended_at?);
    let status = word(&report.status)?;
    let name = Name::of_step(report.number, &report.name, report.bash_command.as_deref());
    let span = Span::begin(Some(trace), AGENT, Kind::Internal, name)?
        .with("gantry.job.id", lease.job_id.uuid())
        .with("gantry.task.id", task.uuid())
        .with("gantry.step.id", report.step_id.uuid())
        .with("gantry.step.number", report.number)
        .with("gantry.step.background", report.background)
        .with("gantry.status", status);
    let span = match report.exit_code {
        Some(code) => span.with("gantry.step.exit_code", i64::from(code)),
        None => span,
    };
    Some(span.failing(!matches!(status, "success" | "canceled")).lasted(report.started_at, ended))
}

/// The status of a step that has ended; `None`: it has not.
fn word(status: &str) -> Option<&'static str> {
    ["success", "failed", "canceled", "timedout", "infrastructure_fail"]
        .into_iter()
        .find(|word| *word == status)
}
