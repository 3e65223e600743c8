//! Workflows as pictures: text, Graphviz DOT, Mermaid.

use model::plan::{JobKind, JobPlan, Plan, Requirement, WorkflowPlan};
use model::status::JobStatus;
use std::collections::HashMap;
use std::fmt::Write;

/// The workflows as indented text: jobs by the step of the graph in which they can start.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for workflow in &plan.workflows {
        let _ = writeln!(out, "{}", workflow.name);
        let ranks = ranks(workflow);
        let last = ranks.iter().copied().max().unwrap_or(0);
        for rank in 0..=last {
            for (job, _) in workflow.jobs.iter().zip(&ranks).filter(|(_, own)| **own == rank) {
                let _ = write!(out, "  {}. {}", rank + 1, job.name);
                if let Some(mark) = mark(job) {
                    let _ = write!(out, " ({mark})");
                }
                let needs: Vec<String> = job.requires.iter().map(|r| edge_text(r, " ")).collect();
                if !needs.is_empty() {
                    let _ = write!(out, "  <- {}", needs.join(", "));
                }
                out.push('\n');
            }
        }
    }
    out
}

/// The workflows in the language of Graphviz.
pub fn dot(plan: &Plan) -> String {
    let mut out = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
    for (number, workflow) in plan.workflows.iter().enumerate() {
        let ids = ids(workflow, number);
        let _ = writeln!(out, "  subgraph cluster_{number} {{\n    label={};", quoted(&workflow.name));
        for job in &workflow.jobs {
            let shape = match job.kind {
                JobKind::Approval => ", shape=diamond",
                JobKind::NoOp => ", style=dotted",
                JobKind::Lock | JobKind::Unlock => ", shape=cds",
                JobKind::Build { .. } => "",
            };
            let _ = writeln!(out, "    {} [label={}{shape}];", ids[job.name.as_str()], quoted(&job.name));
        }
        for job in &workflow.jobs {
            for edge in &job.requires {
                let Some(from) = ids.get(edge.job.as_str()) else { continue };
                let label = statuses(edge).map(|s| format!(" [label={}]", quoted(&s))).unwrap_or_default();
                let _ = writeln!(out, "    {from} -> {}{label};", ids[job.name.as_str()]);
            }
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
    out
}

/// The workflows in the language of Mermaid.
pub fn mermaid(plan: &Plan) -> String {
    let label = |text: &str| format!("\"{}\"", text.replace('"', "#quot;"));
    let mut out = String::from("flowchart LR\n");
    for (number, workflow) in plan.workflows.iter().enumerate() {
        let ids = ids(workflow, number);
        let _ = writeln!(out, "  subgraph w{number}[{}]", label(&workflow.name));
        for job in &workflow.jobs {
            let (open, close) = match job.kind {
                JobKind::Approval => ("{{", "}}"),
                JobKind::NoOp => ("(", ")"),
                JobKind::Lock | JobKind::Unlock => ("[[", "]]"),
                JobKind::Build { .. } => ("[", "]"),
            };
            let _ = writeln!(out, "    {}{open}{}{close}", ids[job.name.as_str()], label(&job.name));
        }
        for job in &workflow.jobs {
            for edge in &job.requires {
                let Some(from) = ids.get(edge.job.as_str()) else { continue };
                let text = statuses(edge).map(|s| format!("|{}|", label(&s))).unwrap_or_default();
                let _ = writeln!(out, "    {from} -->{text} {}", ids[job.name.as_str()]);
            }
        }
        out.push_str("  end\n");
    }
    out
}

/// The workflows as data: jobs with their edges.
pub fn json(plan: &Plan) -> serde_json::Value {
    let job = |job: &JobPlan| {
        let requires: Vec<_> = job
            .requires
            .iter()
            .map(|edge| serde_json::json!({ "job": edge.job, "statuses": edge.accepts }))
            .collect();
        serde_json::json!({ "name": job.name, "type": mark(job).unwrap_or("build"), "requires": requires })
    };
    let workflow = |workflow: &WorkflowPlan| {
        let jobs: Vec<_> = workflow.jobs.iter().map(job).collect();
        serde_json::json!({ "name": workflow.name, "jobs": jobs })
    };
    serde_json::json!({ "workflows": plan.workflows.iter().map(workflow).collect::<Vec<_>>() })
}

fn mark(job: &JobPlan) -> Option<&'static str> {
    match job.kind {
        JobKind::Approval => Some("approval"),
        JobKind::NoOp => Some("no-op"),
        JobKind::Lock => Some("lock"),
        JobKind::Unlock => Some("unlock"),
        JobKind::Build { .. } => None,
    }
}

/// Words that are names in DOT and Mermaid, whatever the job is called.
fn ids(workflow: &WorkflowPlan, number: usize) -> HashMap<&str, String> {
    let names = workflow.jobs.iter().enumerate();
    names.map(|(index, job)| (job.name.as_str(), format!("w{number}j{index}"))).collect()
}

/// The statuses of an edge, if they are not the usual one.
fn statuses(edge: &Requirement) -> Option<String> {
    if edge.accepts.len() == 1 && edge.accepts.contains(&JobStatus::Success) {
        return None;
    }
    Some(edge.accepts.iter().map(|status| status.as_str()).collect::<Vec<_>>().join(", "))
}

fn edge_text(edge: &Requirement, gap: &str) -> String {
    match statuses(edge) {
        Some(statuses) => format!("{}{gap}[{statuses}]", edge.job),
        None => edge.job.clone(),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// For each job the length of the longest way to it.
fn ranks(workflow: &WorkflowPlan) -> Vec<usize> {
    let by_name: HashMap<&str, usize> =
        workflow.jobs.iter().enumerate().map(|(index, job)| (job.name.as_str(), index)).collect();
    let mut ranks = vec![0; workflow.jobs.len()];
    // A graph without circles settles after as many rounds as it has levels.
    for _ in 0..workflow.jobs.len() {
        let mut changed = false;
        for (index, job) in workflow.jobs.iter().enumerate() {
            let upstream = job.requires.iter().filter_map(|edge| by_name.get(edge.job.as_str()));
            let rank = upstream.map(|up| ranks[*up] + 1).max().unwrap_or(0);
            if rank > ranks[index] {
                ranks[index] = rank;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    ranks
}
