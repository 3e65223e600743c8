//! Serial groups: jobs of one organisation that run one after the other (execution §7).
//!
//! A group is an aggregate of its own, because its members belong to many workflows. It knows who holds the lock
//! and who waits, in the order in which they came; the jobs themselves stay with their workflows, which are told
//! of the group's events.

use ids::{JobId, ProjectId, WorkflowId};
use serde::{Deserialize, Serialize};

/// A job that holds the lock or waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub job: JobId,
    /// Its workflow.
    pub workflow: WorkflowId,
    /// Its project: only jobs of one project pass each other over.
    pub project: ProjectId,
    /// Number of its pipeline.
    pub pipeline_number: i64,
}

/// A serial group as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Who may run.
    pub holder: Option<Member>,
    /// Who waits, the first one first.
    pub line: Vec<Member>,
}

/// What happens to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A job has everything but its turn.
    Arrive(Member),
    /// A job ended, or a person took the lock from it: it no longer holds or waits.
    Leave(JobId),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It waits behind others.
    Joined(Member),
    /// It holds the lock now.
    TurnGiven(Member),
    /// A newer pipeline of its project is here already: it is not run.
    PassedOver(Member),
    /// It no longer waits.
    Left(Member),
    /// It no longer holds the lock.
    Released(Member),
}

/// What follows from a command. A repeat of one yields nothing.
pub fn decide(group: &Group, command: &Command) -> Vec<Event> {
    match command {
        Command::Arrive(new) => {
            let mut members = group.holder.iter().chain(&group.line);
            if members.clone().any(|member| member.job == new.job) {
                return Vec::new();
            }
            if members.any(|member| is_newer(member, new)) {
                return vec![Event::PassedOver(*new)];
            }
            let free = group.holder.is_none() && group.line.is_empty();
            vec![if free { Event::TurnGiven(*new) } else { Event::Joined(*new) }]
        }
        Command::Leave(job) => match group.holder {
            Some(holder) if holder.job == *job => {
                let next = group.line.first().copied().map(Event::TurnGiven);
                std::iter::once(Event::Released(holder)).chain(next).collect()
            }
            _ => group
                .line
                .iter()
                .find(|member| member.job == *job)
                .copied()
                .map(Event::Left)
                .into_iter()
                .collect(),
        },
    }
}

fn is_newer(member: &Member, than: &Member) -> bool {
    member.project == than.project && member.pipeline_number > than.pipeline_number
}

/// Applies an event.
pub fn evolve(group: &mut Group, event: &Event) {
    match event {
        Event::Joined(member) => group.line.push(*member),
        Event::TurnGiven(member) => {
            group.line.retain(|waiting| waiting.job != member.job);
            group.holder = Some(*member);
        }
        Event::Left(member) => group.line.retain(|waiting| waiting.job != member.job),
        Event::Released(_) => group.holder = None,
        Event::PassedOver(_) => {}
    }
}
