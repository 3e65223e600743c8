//! Serial groups and the queue for slots under random histories, watched by promises said in another way.

use gantry_model::{
    queue::{self, Held, Limits, Owner, Waiting},
    serial::{self, Command, Event, Group, Member},
};
use ids::{JobId, OrgId, ProjectId, WorkflowId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

fn uuid(n: u32) -> Uuid {
    Uuid::from_u128(u128::from(n) + 1)
}

fn member(job: u32, project: u32, number: i64) -> Member {
    Member {
        job: JobId(uuid(job)),
        workflow: WorkflowId(uuid(job)),
        project: ProjectId(uuid(project)),
        pipeline_number: number,
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// Project, pipeline number.
    Arrive(u32, i64),
    /// The holder ends.
    EndHolder,
    /// Some member leaves.
    Leave(prop::sample::Index),
    /// Anything that happened comes again.
    Repeat(prop::sample::Index),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (0..3u32, 1..20i64).prop_map(|(project, number)| Act::Arrive(project, number)),
        3 => Just(Act::EndHolder),
        1 => any::<prop::sample::Index>().prop_map(Act::Leave),
        1 => any::<prop::sample::Index>().prop_map(Act::Repeat),
    ];
    prop::collection::vec(act, 0..60)
}

fn play(group: &mut Group, command: &Command) -> Vec<Event> {
    let events = serial::decide(group, command);
    for event in &events {
        serial::evolve(group, event);
    }
    events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// One holds at a time, the others in the order in which they came, nobody is passed over by an older
    /// pipeline of another project, and nobody waits while the lock is free.
    #[test]
    fn r22_a_serial_group_runs_one_after_the_other(acts in acts()) {
        let mut group = Group::default();
        let (mut arrived, mut gone) = (Vec::<Member>::new(), HashSet::new());
        let mut turns = Vec::new();
        let mut commands = Vec::new();
        for (n, act) in (0u32..).zip(acts) {
            let command = match act {
                Act::Arrive(project, number) => Command::Arrive(member(n, project, number)),
                Act::EndHolder => match group.holder {
                    Some(holder) => Command::Leave(holder.job),
                    None => continue,
                },
                Act::Leave(pick) if !arrived.is_empty() => Command::Leave(pick.get(&arrived).job),
                Act::Repeat(pick) if !commands.is_empty() => {
                    let again: &Command = pick.get(&commands);
                    // An arrival that is known, or a departure that has happened, changes nothing.
                    let known = match again {
                        Command::Arrive(m) => {
                            group.holder.iter().chain(&group.line).any(|known| known.job == m.job)
                        }
                        Command::Leave(job) => gone.contains(job),
                    };
                    if known {
                        prop_assert!(serial::decide(&group, again).is_empty(), "a repeat of {again:?} counts");
                    }
                    continue;
                }
                _ => continue,
            };
            let before = group.clone();
            let events = play(&mut group, &command);
            commands.push(command);
            match command {
                Command::Arrive(new) => {
                    let newer = before.holder.iter().chain(&before.line)
                        .any(|m| m.project == new.project && m.pipeline_number > new.pipeline_number);
                    let expected = if newer {
                        Event::PassedOver(new)
                    } else if before.holder.is_none() {
                        Event::TurnGiven(new)
                    } else {
                        Event::Joined(new)
                    };
                    prop_assert_eq!(&events, &vec![expected]);
                    if !newer {
                        arrived.push(new);
                    }
                }
                Command::Leave(job) => {
                    gone.insert(job);
                }
            }
            for event in &events {
                if let Event::TurnGiven(m) = event {
                    turns.push(m.job);
                }
            }
            prop_assert!(group.holder.is_some() || group.line.is_empty(), "somebody waits for a free lock");
        }
        // Turns come in the order of arrival.
        let places: HashMap<JobId, usize> = arrived.iter().enumerate().map(|(at, m)| (m.job, at)).collect();
        prop_assert!(turns.windows(2).all(|two| places[&two[0]] < places[&two[1]]), "not in order: {turns:?}");
    }

    /// Limits are exact, no slot stays free that somebody could have, and no organisation gets two more than
    /// another that could have had one.
    #[test]
    fn r22_slots_are_shared_fairly_and_exactly(
        waiting in prop::collection::vec((0..4u32, 0..3u32, 0..2u32), 0..80),
        held in prop::collection::vec((0..4u32, 0..3u32, 0..2u32), 0..10),
        slots in 0..20u32,
        per_org in prop::option::of(1..6u32),
        per_project in prop::option::of(1..4u32),
        of_class in prop::option::of(1..5u32),
    ) {
        let owner = |(org, project, class): (u32, u32, u32)| Owner {
            org: OrgId(uuid(org)),
            project: ProjectId(uuid(org * 10 + project)),
            class: format!("c{class}"),
        };
        let per_class: BTreeMap<String, u32> = of_class.map(|n| ("c0".to_owned(), n)).into_iter().collect();
        let limits = Limits { slots, per_org, per_project, per_class };
        let mut before = Held::default();
        let mut counts: Vec<Owner> = held.into_iter().map(owner).collect();
        for owner in &counts {
            before.add(owner, 1);
        }
        let held_before = counts.len();
        let line: Vec<Waiting<usize>> = waiting.iter().enumerate()
            .map(|(task, whose)| Waiting { task, position: task as i64, owner: owner(*whose) }).collect();
        let granted = queue::grant(line.clone(), &before, &limits);
        let unique: HashSet<_> = granted.iter().collect();
        prop_assert_eq!(unique.len(), granted.len(), "somebody got two slots");
        counts.extend(granted.iter().map(|task| line[*task].owner.clone()));
        let count = |what: &dyn Fn(&Owner) -> bool| counts.iter().filter(|o| what(o)).count() as u32;
        for task in &granted {
            let Owner { org, project, class } = &line[*task].owner;
            prop_assert!(counts.len() as u32 <= slots);
            prop_assert!(limits.per_org.is_none_or(|limit| count(&|o| o.org == *org) <= limit));
            prop_assert!(limits.per_project.is_none_or(|limit| count(&|o| o.project == *project) <= limit));
            let limit = limits.per_class.get(class);
            prop_assert!(limit.is_none_or(|limit| count(&|o| o.class == *class) <= *limit));
        }
        // Work-conserving: who is left out is kept by a limit.
        let mut after = before.clone();
        for task in &granted {
            after.add(&line[*task].owner, 1);
        }
        for task in line.iter().filter(|task| !unique.contains(&task.task)) {
            prop_assert!(after.barrier(&task.owner, &limits).is_some(), "{} could have a slot", task.task);
        }
        // Within one owner the oldest come first.
        for (a, b) in granted.iter().zip(granted.iter().skip(1)) {
            prop_assert!(line[*a].owner != line[*b].owner || a < b);
        }
        // Fair: with nothing but a total, held shares of organisations that still wait differ by one at most,
        // unless the larger share was there before.
        if per_org.is_none() && per_project.is_none() && of_class.is_none() && !granted.is_empty() {
            for hungry in line.iter().filter(|task| !unique.contains(&task.task)) {
                let own = count(&|o| o.org == hungry.owner.org);
                for task in &granted {
                    let theirs = count(&|o| o.org == line[*task].owner.org);
                    prop_assert!(theirs <= own + 1, "{theirs} slots here, {own} there, of {held_before} before");
                }
            }
        }
    }
}

#[test]
fn one_task_of_another_organisation_is_next_behind_ten_thousand() {
    let mine = Owner { org: OrgId(uuid(1)), project: ProjectId(uuid(1)), class: String::new() };
    let yours = Owner { org: OrgId(uuid(2)), ..mine.clone() };
    let mut line: Vec<Waiting<u32>> =
        (0..10_000).map(|n| Waiting { task: n, position: i64::from(n), owner: mine.clone() }).collect();
    line.push(Waiting { task: 10_000, position: 10_000, owner: yours });
    let mut held = Held::default();
    held.add(&mine, 8);
    assert_eq!(queue::grant(line.clone(), &held, &Limits::total(9)), [10_000]);
    let order = queue::order(line, &held);
    assert_eq!((order[0], order[1], order.len()), (10_000, 0, 10_001));
}
