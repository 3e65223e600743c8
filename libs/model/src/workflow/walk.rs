//! One step of a workflow, from a command to its last consequence.

use super::{
    decide::{Command, Refusal, Rules, Sound, decide_as, request_cancel},
    state::{Dependant, Event, Job, Root, evolve},
};
use ids::{JobId, Timestamp};
use std::{collections::BTreeMap, marker::PhantomData};

/// A step under way. Its caller feeds it jobs with their dependants until none is [`Walk::wanted`].
///
/// ```text
/// command(job, dependants) → while wanted() is not empty: propagate(job, dependants) → conclude()
/// ```
#[derive(Debug)]
pub struct Walk<R: Rules = Sound> {
    root: Root,
    // Jobs as they are after the events so far. A job can be reached twice in one step (a diamond), and the
    // second time the caller's copy is old.
    touched: BTreeMap<JobId, Job>,
    events: Vec<Event>,
    wanted: Vec<JobId>,
    now: Timestamp,
    rules: PhantomData<R>,
}

/// What a step changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The root after it.
    pub root: Root,
    /// The jobs that events changed, after it.
    pub jobs: BTreeMap<JobId, Job>,
    /// What happened, in order.
    pub events: Vec<Event>,
}

impl Walk<Sound> {
    /// Begins a step at `now`.
    pub fn new(root: Root, now: Timestamp) -> Self {
        Self::under_rules(root, now)
    }
}

impl<R: Rules> Walk<R> {
    /// Begins a step under given rules.
    #[doc(hidden)]
    pub fn under_rules(root: Root, now: Timestamp) -> Self {
        Self {
            root,
            touched: BTreeMap::new(),
            events: Vec::new(),
            wanted: Vec::new(),
            now,
            rules: PhantomData,
        }
    }

    /// Gives a command to a job.
    ///
    /// # Errors
    /// What was asked is not possible (any more).
    pub fn command(
        &mut self,
        job: Job,
        dependants: Vec<Dependant>,
        command: &Command,
    ) -> Result<(), Refusal> {
        let job = self.newest(job);
        let mut dependants = dependants;
        for dependant in &mut dependants {
            if let Some(newer) = self.touched.get(&dependant.job.id) {
                dependant.job.clone_from(newer);
            }
        }
        let events = decide_as::<R>(&self.root, &job, &dependants, command, self.now)?;
        for event in &events {
            let subject = event.job().map(|id| {
                if id != job.id && matches!(event, Event::JobEnded { status, .. } if R::passes_on(*status)) {
                    self.wanted.push(id);
                }
                let touched = self.touched.entry(id);
                let loaded =
                    || dependants.iter().map(|d| &d.job).find(|d| d.id == id).unwrap_or(&job).clone();
                touched.or_insert_with(loaded)
            });
            evolve(&mut self.root, subject, event);
        }
        self.events.extend(events);
        Ok(())
    }

    /// Jobs that ended during this step and whose dependants have not been looked at.
    pub fn wanted(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.wanted)
    }

    /// Supplies the dependants of a job that was [`Walk::wanted`].
    ///
    /// # Errors
    /// None under the rules in force.
    pub fn propagate(&mut self, job: JobId, dependants: Vec<Dependant>) -> Result<(), Refusal> {
        match self.touched.get(&job) {
            Some(job) => self.command(job.clone(), dependants, &Command::Propagate),
            None => Ok(()),
        }
    }

    /// Cancels the workflow: marks it, ends every job that waits. `open` are its jobs that have not ended.
    /// A repeat changes nothing.
    ///
    /// # Errors
    /// It has ended with another status.
    pub fn cancel_workflow(&mut self, open: Vec<Job>, reason: Option<&str>) -> Result<(), Refusal> {
        let events = request_cancel(&self.root)?;
        for event in &events {
            evolve(&mut self.root, None, event);
        }
        self.events.extend(events);
        for job in open {
            let command = Command::CancelWithWorkflow { reason: reason.map(str::to_owned) };
            self.command(job, Vec::new(), &command)?;
        }
        Ok(())
    }

    /// Ends the step: the workflow's status follows from its numbers.
    pub fn conclude(mut self) -> Changes {
        if !self.root.status.is_terminal() {
            let status = R::verdict(&self.root);
            let event = if status.is_terminal() {
                Some(Event::Finished { status, at: self.now })
            } else if status != self.root.status {
                Some(Event::StatusChanged { status })
            } else {
                None
            };
            if let Some(event) = event {
                evolve(&mut self.root, None, &event);
                self.events.push(event);
            }
        }
        Changes { root: self.root, jobs: self.touched, events: self.events }
    }

    fn newest(&self, job: Job) -> Job {
        self.touched.get(&job.id).cloned().unwrap_or(job)
    }
}
