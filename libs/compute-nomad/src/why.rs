//! Why no machine takes a job, in words.

use crate::api::{Asked, Blocked, Metric};

/// What an evaluation says, for people.
pub(crate) fn of(blocked: &Blocked) -> String {
    let metric = blocked.failed.iter().flat_map(|failed| failed.values()).next();
    let reasons = metric.map(reasons).unwrap_or_default();
    if !reasons.is_empty() {
        return format!("Nomad has no place for it: {}", reasons.join("; "));
    }
    if !blocked.quota_limit_reached.is_empty() {
        return format!("Nomad has no place for it: the quota {} is used up", blocked.quota_limit_reached);
    }
    "Nomad has no place for it, and does not say why".to_owned()
}

fn reasons(metric: &Metric) -> Vec<String> {
    let available: u32 = metric.nodes_available.iter().flat_map(|by| by.values()).sum();
    if metric.nodes_in_pool == 0 {
        return vec!["no machine of its node pool is ready".to_owned()];
    }
    if available == 0 {
        return vec!["no machine of its datacenters is ready".to_owned()];
    }
    let of = |count: u32| format!("{count} of {} machines", metric.nodes_evaluated.max(count));
    let asked = metric.resources_exhausted.iter().flat_map(|by| by.values()).next().copied();
    let mut reasons = Vec::new();
    for (dimension, count) in metric.dimension_exhausted.iter().flatten() {
        reasons.push(format!("{} on {}", exhausted(dimension, asked), of(*count)));
    }
    for (constraint, count) in metric.constraint_filtered.iter().flatten() {
        reasons.push(match constraint.as_str() {
            "missing drivers" => format!("{} have no driver for it", of(*count)),
            _ => format!("{} do not meet `{constraint}`", of(*count)),
        });
    }
    for quota in metric.quota_exhausted.iter().flatten() {
        reasons.push(format!("the quota {quota} is used up"));
    }
    reasons
}

fn exhausted(dimension: &str, asked: Option<Asked>) -> String {
    match (dimension, asked) {
        ("memory", Some(Asked { memory, .. })) if memory > 0 => {
            format!("there is not enough memory (it asks for {memory} MiB)")
        }
        ("cpu", Some(Asked { cpu, .. })) if cpu > 0 => {
            format!("there is not enough processor time (it asks for {cpu} MHz)")
        }
        _ => format!("there is not enough {dimension}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn why(metric: Value) -> String {
        of(&serde_json::from_value(json!({ "JobID": "task-x-1", "FailedTGAllocs": { "agent": metric } }))
            .unwrap())
    }

    #[test]
    fn what_is_exhausted_is_said_with_what_was_asked() {
        let text = why(json!({
            "NodesEvaluated": 2, "NodesInPool": 2, "NodesAvailable": { "dc1": 2 }, "ConstraintFiltered": null,
            "DimensionExhausted": { "memory": 2 }, "ResourcesExhausted": { "agent": { "CPU": 0, "MemoryMB": 4096 } },
        }));
        let wanted =
            "Nomad has no place for it: there is not enough memory (it asks for 4096 MiB) on 2 of 2 machines";
        assert_eq!(text, wanted);
    }

    #[test]
    fn constraints_drivers_and_quotas_are_named() {
        let text = why(json!({
            "NodesEvaluated": 3, "NodesInPool": 3, "NodesAvailable": { "dc1": 3 }, "QuotaExhausted": ["ci"],
            "ConstraintFiltered": { "${attr.cpu.arch} = arm64": 2, "missing drivers": 1 },
        }));
        assert!(text.contains("2 of 3 machines do not meet `${attr.cpu.arch} = arm64`"), "{text}");
        assert!(text.contains("1 of 3 machines have no driver for it"), "{text}");
        assert!(text.contains("the quota ci is used up"), "{text}");
    }

    #[test]
    fn where_there_is_no_machine_that_is_the_reason() {
        let text = why(json!({ "NodesInPool": 0, "NodesAvailable": {} }));
        assert!(text.ends_with("no machine of its node pool is ready"), "{text}");
        let text = why(json!({ "NodesInPool": 2, "NodesAvailable": { "dc1": 0 } }));
        assert!(text.ends_with("no machine of its datacenters is ready"), "{text}");
        assert!(of(&Blocked::default()).ends_with("does not say why"));
    }
}
