//! The queue for slots: who gets a free one (reliability §11, R-22).
//!
//! Slots are counted, never kept: what is held now and who waits goes in, who gets a slot comes out. Fairness is
//! between organisations: a free slot goes to the one that holds the fewest, and within it to who waits longest.
//! So an organisation with ten thousand waiting tasks delays another's single task by no more than one slot.

use ids::{OrgId, ProjectId};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Limits on tasks that hold a slot. All are exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub slots: u32,
    /// Of each organisation.
    pub per_org: Option<u32>,
    /// Of each project.
    pub per_project: Option<u32>,
    /// Of resource classes by name; others have no limit of their own.
    pub per_class: BTreeMap<String, u32>,
}

impl Limits {
    /// A total and nothing else.
    pub fn total(slots: u32) -> Self {
        Self { slots, per_org: None, per_project: None, per_class: BTreeMap::new() }
    }
}

/// Whose a task is: everything that a limit counts by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Organisation.
    pub org: OrgId,
    /// Project.
    pub project: ProjectId,
    /// Resource class.
    pub class: String,
}

/// Slots that are held, by what limits count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    total: u32,
    orgs: HashMap<OrgId, u32>,
    projects: HashMap<ProjectId, u32>,
    classes: HashMap<String, u32>,
}

impl Held {
    /// `n` tasks of this owner hold slots.
    pub fn add(&mut self, owner: &Owner, n: u32) {
        self.total += n;
        *self.orgs.entry(owner.org).or_default() += n;
        *self.projects.entry(owner.project).or_default() += n;
        *self.classes.entry(owner.class.clone()).or_default() += n;
    }

    /// Slots that are held in all.
    pub const fn total(&self) -> u32 {
        self.total
    }

    fn of(&self, org: OrgId) -> u32 {
        self.orgs.get(&org).copied().unwrap_or(0)
    }

    /// The limit, if any, that keeps a task of this owner from a slot now. The total is told first.
    pub fn barrier(&self, owner: &Owner, limits: &Limits) -> Option<Barrier> {
        let full = |held: Option<&u32>, limit: Option<u32>| {
            limit.is_some_and(|limit| held.copied().unwrap_or(0) >= limit)
        };
        if self.total >= limits.slots {
            Some(Barrier::Slots)
        } else if full(self.orgs.get(&owner.org), limits.per_org) {
            Some(Barrier::Org)
        } else if full(self.projects.get(&owner.project), limits.per_project) {
            Some(Barrier::Project)
        } else if full(self.classes.get(&owner.class), limits.per_class.get(&owner.class).copied()) {
            Some(Barrier::Class)
        } else {
            None
        }
    }
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// All slots are taken.
    Slots,
    /// The organisation's share is.
    Org,
    /// The project's share is.
    Project,
    /// The resource class's share is.
    Class,
}

/// A task in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<T> {
    /// Which.
    pub task: T,
    /// Grows with age: the smallest waits longest.
    pub position: i64,
    /// Whose.
    pub owner: Owner,
}

/// The tasks that get a slot now, in that order.
///
/// Of the waiting ones of each owner the oldest are enough: as many as there are free slots.
pub fn grant<T>(waiting: Vec<Waiting<T>>, held: &Held, limits: &Limits) -> Vec<T> {
    let mut held = held.clone();
    let mut granted = Vec::new();
    let mut lines = Lines::new(waiting);
    while held.total < limits.slots {
        let Some(next) = lines.next(&held, limits) else { break };
        held.add(&next.owner, 1);
        granted.push(next.task);
    }
    granted
}

/// The whole line in the order in which tasks will get slots if nothing new comes and limits but the total are
/// left aside: a task's place in it is what people are told.
pub fn order<T>(waiting: Vec<Waiting<T>>, held: &Held) -> Vec<T> {
    grant(waiting, held, &Limits::total(u32::MAX))
}

/// Who waits, by owner, and the owners by organisation.
struct Lines<T> {
    by_org: BTreeMap<OrgId, BTreeSet<(i64, usize)>>,
    lines: Vec<(Owner, VecDeque<Waiting<T>>)>,
}

impl<T> Lines<T> {
    fn new(mut waiting: Vec<Waiting<T>>) -> Self {
        waiting.sort_by_key(|task| task.position);
        let mut index: HashMap<Owner, usize> = HashMap::new();
        let mut lines: Vec<(Owner, VecDeque<Waiting<T>>)> = Vec::new();
        for task in waiting {
            let at = *index.entry(task.owner.clone()).or_insert_with(|| {
                lines.push((task.owner.clone(), VecDeque::new()));
                lines.len() - 1
            });
            lines[at].1.push_back(task);
        }
        let mut by_org: BTreeMap<OrgId, BTreeSet<(i64, usize)>> = BTreeMap::new();
        for (at, (owner, line)) in lines.iter().enumerate() {
            let head = line.front().map_or(i64::MAX, |task| task.position);
            by_org.entry(owner.org).or_default().insert((head, at));
        }
        Self { by_org, lines }
    }

    /// Takes the one whose turn it is, if any limit lets one through.
    fn next(&mut self, held: &Held, limits: &Limits) -> Option<Waiting<T>> {
        let (_, head, at) = self
            .by_org
            .iter()
            .filter_map(|(org, heads)| {
                let free = heads.iter().find(|(_, at)| held.barrier(&self.lines[*at].0, limits).is_none())?;
                Some((held.of(*org), free.0, free.1))
            })
            .min()?;
        let (owner, line) = &mut self.lines[at];
        let task = line.pop_front();
        let heads = self.by_org.entry(owner.org).or_default();
        heads.remove(&(head, at));
        if let Some(next) = line.front() {
            heads.insert((next.position, at));
        }
        task
    }
}
