//! Names that metrics have in the reference product, so that dashboards made for it go on working (services §8). Each is
//! recorded beside our own, in the unit that the other name has.

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use std::sync::Arc;

/// Which of our metric's series have the other name.
#[derive(Clone, Copy, Debug)]
pub enum Where {
    /// All.
    Always,
    /// Those with this value of this label, which the other name does not have.
    Is(&'static str, &'static str),
    /// Those whose value of this label begins so; the other name does not have the label.
    Begins(&'static str, &'static str),
}

impl Where {
    /// The label that decides, and is not repeated.
    fn label(self) -> Option<&'static str> {
        match self {
            Self::Always => None,
            Self::Is(label, _) | Self::Begins(label, _) => Some(label),
        }
    }

    fn holds(self, key: &Key) -> bool {
        let value = |name| key.labels().find(|label| label.key() == name).map(metrics::Label::value);
        match self {
            Self::Always => true,
            Self::Is(label, wanted) => value(label) == Some(wanted),
            Self::Begins(label, wanted) => value(label).is_some_and(|value| value.starts_with(wanted)),
        }
    }
}

/// One other name.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// Our metric.
    pub ours: &'static str,
    /// Which series of it.
    pub only: Where,
    /// The other name.
    pub name: &'static str,
    /// What our value is multiplied with.
    pub factor: f64,
}

const fn same(ours: &'static str, name: &'static str) -> Alias {
    Alias { ours, only: Where::Always, name, factor: 1.0 }
}

const fn millis(ours: &'static str, only: Where, name: &'static str) -> Alias {
    Alias { ours, only, name, factor: 1000.0 }
}

const fn only(ours: &'static str, label: &'static str, value: &'static str, name: &'static str) -> Alias {
    Alias { ours, only: Where::Is(label, value), name, factor: 1.0 }
}

/// All of them. Where two series of ours would get one name and the same labels, the other name would be wrong: each stands
/// here once.
pub const ALIASES: [Alias; 17] = [
    millis("gantry.dispatcher.claim_seconds", Where::Always, "circle.run-queue.latency"),
    millis("gantry.http.request_seconds", Where::Always, "circle.http.request"),
    same("gantry.dispatcher.runnable", "circle.build-queue.runnable.builds"),
    only("gantry.dispatcher.queue", "of", "jobs", "circleci.distributor.gauge.dispatcher.job_queue.jobs"),
    only("gantry.dispatcher.queue", "of", "tasks", "circleci.distributor.gauge.dispatcher.job_queue.tasks"),
    only("gantry.dispatcher.queue", "of", "classes", "circleci.distributor.gauge.dispatcher.job_queue.keys"),
    same("gantry.dispatcher.infrastructure_failures", "build_agent.infra_failed"),
    same("gantry.scheduler.unplaced", "circle.dispatcher.find-containers-failed"),
    same("gantry.scheduler.poll_failed", "circle.nomad.server_agent.poll_failure"),
    same("gantry.pipelines.decisions", "workflows_conductor.trigger.decision"),
    millis(
        "gantry.conductor.since_push_seconds",
        Where::Always,
        "workflows_conductor.messaging.make_workflow.time_since_push",
    ),
    millis(
        "gantry.conductor.workflow_seconds",
        Where::Always,
        "workflows_conductor.execute_workflow.time_to_complete",
    ),
    millis(
        "gantry.bus.handle_seconds",
        Where::Begins("group", "conductor."),
        "workflows_conductor.engine_handler.messages.timing",
    ),
    only("gantry.bus.requests", "service", "permissions", "circle.permissions_service.client_call.count"),
    only("gantry.scheduler.placements", "phase", "waits", "circle.nomad.server_agent.jobs.pending"),
    only("gantry.scheduler.placements", "phase", "runs", "circle.nomad.server_agent.jobs.running"),
    only("gantry.scheduler.placements", "phase", "ended", "circle.nomad.server_agent.jobs.dead"),
];

/// Records under the other names as well.
pub(crate) struct Aliased<R>(pub(crate) R);

impl<R: Recorder> Aliased<R> {
    /// The other name of a key, with what its values are multiplied with. The label that is in the name is not repeated.
    fn alias(key: &Key) -> Option<(Key, f64)> {
        let found = ALIASES.iter().find(|alias| alias.ours == key.name() && alias.only.holds(key))?;
        let decides = found.only.label();
        let labels = key.labels().filter(|label| Some(label.key()) != decides).cloned().collect::<Vec<_>>();
        Some((Key::from_parts(found.name, labels), found.factor))
    }
}

/// Two metrics that are told the same.
struct Both<T>(T, T, f64);

impl CounterFn for Both<Counter> {
    fn increment(&self, value: u64) {
        self.0.increment(value);
        self.1.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.0.absolute(value);
        self.1.absolute(value);
    }
}

impl GaugeFn for Both<Gauge> {
    fn increment(&self, value: f64) {
        self.0.increment(value);
        self.1.increment(value * self.2);
    }

    fn decrement(&self, value: f64) {
        self.0.decrement(value);
        self.1.decrement(value * self.2);
    }

    fn set(&self, value: f64) {
        self.0.set(value);
        self.1.set(value * self.2);
    }
}

impl HistogramFn for Both<Histogram> {
    fn record(&self, value: f64) {
        self.0.record(value);
        self.1.record(value * self.2);
    }
}

impl<R: Recorder> Recorder for Aliased<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let ours = self.0.register_counter(key, metadata);
        match Self::alias(key) {
            Some((other, factor)) => {
                let other = self.0.register_counter(&other, metadata);
                Counter::from_arc(Arc::new(Both(ours, other, factor)))
            }
            None => ours,
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let ours = self.0.register_gauge(key, metadata);
        match Self::alias(key) {
            Some((other, factor)) => {
                let other = self.0.register_gauge(&other, metadata);
                Gauge::from_arc(Arc::new(Both(ours, other, factor)))
            }
            None => ours,
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let ours = self.0.register_histogram(key, metadata);
        match Self::alias(key) {
            Some((other, factor)) => {
                let other = self.0.register_histogram(&other, metadata);
                Histogram::from_arc(Arc::new(Both(ours, other, factor)))
            }
            None => ours,
        }
    }
}
