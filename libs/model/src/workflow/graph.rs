//! A whole workflow at its birth: the one moment when all jobs are looked at together.

use super::{
    decide::{Command, Refusal, Rules, Sound},
    state::{Dependant, Job, Kind, Root, StatusSet, Turn},
    walk::{Changes, Walk},
};
use crate::{plan::WorkflowPlan, status::JobStatus};
use ids::{JobId, Timestamp};
use std::collections::{BTreeMap, HashMap};

/// A node with its edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The job as it is before the workflow begins.
    pub job: Job,
    /// Upstream jobs (by index) with the statuses that satisfy the edge.
    pub requires: Vec<(usize, StatusSet)>,
}

/// The jobs of a workflow in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Its nodes.
    pub nodes: Vec<Node>,
}

/// Why a plan is not a graph of jobs. The compiler lets none of these pass; the conductor does not rely on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Two jobs have the same name.
    #[error("two jobs of workflow {workflow} are named {job}")]
    Twice {
        /// Workflow.
        workflow: String,
        /// Name.
        job: String,
    },
    /// An edge leads nowhere.
    #[error("job {job} of workflow {workflow} requires {upstream}, which does not exist")]
    Unknown {
        /// Workflow.
        workflow: String,
        /// Job.
        job: String,
        /// What it requires.
        upstream: String,
    },
    /// Jobs wait for each other.
    #[error("jobs of workflow {workflow} wait for each other, {job} among them")]
    Cycle {
        /// Workflow.
        workflow: String,
        /// One of them.
        job: String,
    },
}

impl Graph {
    /// The graph of a plan; `id` names each job, and `carried` says which succeeded before and is kept.
    ///
    /// # Errors
    /// Names clash or lead nowhere, or there is a cycle.
    pub fn of_plan(
        plan: &WorkflowPlan,
        mut id: impl FnMut(usize) -> JobId,
        carried: impl Fn(&str) -> bool,
    ) -> Result<Self, GraphError> {
        let mut by_name = HashMap::with_capacity(plan.jobs.len());
        for (index, job) in plan.jobs.iter().enumerate() {
            if by_name.insert(job.name.as_str(), index).is_some() {
                return Err(GraphError::Twice { workflow: plan.name.clone(), job: job.name.clone() });
            }
        }
        let mut nodes = Vec::with_capacity(plan.jobs.len());
        for (index, job) in plan.jobs.iter().enumerate() {
            let mut requires: BTreeMap<usize, StatusSet> = BTreeMap::new();
            for edge in &job.requires {
                let upstream = *by_name.get(edge.job.as_str()).ok_or_else(|| GraphError::Unknown {
                    workflow: plan.name.clone(),
                    job: job.name.clone(),
                    upstream: edge.job.clone(),
                })?;
                let accepts = StatusSet::from(&edge.accepts);
                // The same upstream twice: both must hold.
                requires.entry(upstream).and_modify(|both| *both = both.and(accepts)).or_insert(accepts);
            }
            let unmet = u32::try_from(requires.len()).unwrap_or(u32::MAX);
            let mut node = Job::blocked(id(index), Kind::from(&job.kind), unmet);
            if job.serial_group.is_some() && node.kind.takes_turns() {
                node.turn = Turn::Needed;
            }
            if carried(&job.name) {
                node.turn = Turn::Free;
                node.status = JobStatus::Success;
                node.unmet = 0;
            }
            nodes.push(Node { job: node, requires: requires.into_iter().collect() });
        }
        let graph = Self { nodes };
        match graph.order() {
            Ok(_) => Ok(graph),
            Err(index) => Err(GraphError::Cycle {
                workflow: plan.name.clone(),
                job: plan.jobs.get(index).map(|job| job.name.clone()).unwrap_or_default(),
            }),
        }
    }

    /// Per job, who waits for it.
    pub fn dependants(&self) -> Vec<Vec<(usize, StatusSet)>> {
        let mut down = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for (upstream, accepts) in &node.requires {
                down[*upstream].push((index, *accepts));
            }
        }
        down
    }

    /// The nodes so that each comes after what it requires, or one that is on a cycle.
    fn order(&self) -> Result<Vec<usize>, usize> {
        let down = self.dependants();
        let mut open: Vec<usize> = self.nodes.iter().map(|node| node.requires.len()).collect();
        let mut order: Vec<usize> = (0..open.len()).filter(|index| open[*index] == 0).collect();
        let mut next = 0;
        while let Some(index) = order.get(next).copied() {
            next += 1;
            for (dependant, _) in &down[index] {
                open[*dependant] -= 1;
                if open[*dependant] == 0 {
                    order.push(*dependant);
                }
            }
        }
        match open.iter().position(|n| *n > 0) {
            None => Ok(order),
            Some(index) => Err(index),
        }
    }

    /// The first step: jobs without unmet requirements begin, carried ones count as ended.
    ///
    /// # Errors
    /// None under the rules in force.
    pub fn begin(&self, now: Timestamp) -> Result<Changes, Refusal> {
        self.begin_as::<Sound>(now)
    }

    /// [`Graph::begin`] under given rules.
    ///
    /// # Errors
    /// As [`Graph::begin`].
    #[doc(hidden)]
    pub fn begin_as<R: Rules>(&self, now: Timestamp) -> Result<Changes, Refusal> {
        let mut root = Root::new();
        for node in &self.nodes {
            root.counts.add(node.job.status);
        }
        let down = self.dependants();
        let dependants = |index: usize| -> Vec<Dependant> {
            down[index]
                .iter()
                .map(|(index, accepts)| Dependant { job: self.nodes[*index].job.clone(), accepts: *accepts })
                .collect()
        };
        let mut walk = Walk::<R>::under_rules(root, now);
        let position: HashMap<JobId, usize> =
            self.nodes.iter().enumerate().map(|(index, node)| (node.job.id, index)).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            let command = match node.job.status {
                JobStatus::Blocked if node.requires.is_empty() => Command::Begin,
                JobStatus::Blocked => continue,
                _ => Command::Propagate,
            };
            walk.command(node.job.clone(), dependants(index), &command)?;
        }
        loop {
            let wanted = walk.wanted();
            if wanted.is_empty() {
                break;
            }
            for id in wanted {
                walk.propagate(id, dependants(position[&id]))?;
            }
        }
        Ok(walk.conclude())
    }
}
