//! What `/proc` says about processes.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Environment variable that marks a placement's processes.
pub(crate) const MARK: &str = "GANTRY_PLACEMENT";

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    started: u64,
}

struct Stat {
    identity: Identity,
    state: char,
    parent: i32,
    session: i32,
}

impl Stat {
    /// A line of `/proc/<pid>/stat`. The second field is a name in brackets that may hold anything.
    fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(' ')?;
        let fields: Vec<&str> = rest.get(rest.rfind(')')? + 1..)?.split_whitespace().collect();
        Some(Self {
            identity: Identity { pid: pid.parse().ok()?, started: fields.get(19)?.parse().ok()? },
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
        })
    }

    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

impl Identity {
    /// The identity in a file that the process wrote its own `/proc/self/stat` to.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        Stat::parse(&fs::read_to_string(file).ok()?).map(|stat| stat.identity)
    }

    /// Whether it runs. A zombie does not: nobody may be there to reap it.
    pub(crate) fn alive(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.identity == self && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// Kills the agent, its session, its descendants and everything that carries its mark, until nothing is left
/// or the limit is reached. Returns whether nothing is left.
pub(crate) async fn kill_all(agent: Option<Identity>, name: &str, limit: Duration) -> bool {
    let asked = Instant::now();
    loop {
        let found = members(agent, name);
        if found.is_empty() {
            return true;
        }
        for identity in &found {
            // The number may have been reused since the listing: look once more right before.
            if identity.alive() {
                let _ = kill(Pid::from_raw(identity.pid), Signal::SIGKILL);
            }
        }
        if asked.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn members(agent: Option<Identity>, name: &str) -> Vec<Identity> {
    let mark = format!("{MARK}={name}");
    let all: Vec<Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Stat::of(entry.file_name().to_str()?.parse().ok()?))
        .filter(|stat| !matches!(stat.state, 'Z' | 'X'))
        .collect();
    // The session's number is the agent's only while no later process has taken the number for itself.
    let session = agent.filter(|agent| Stat::of(agent.pid).is_none_or(|stat| stat.identity == *agent));
    let marked = |pid: i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes()))
    };
    let mut ours: HashSet<i32> = all
        .iter()
        .filter(|stat| {
            agent == Some(stat.identity)
                || session
                    .is_some_and(|agent| stat.session == agent.pid && stat.identity.started >= agent.started)
                || marked(stat.identity.pid)
        })
        .map(|stat| stat.identity.pid)
        .collect();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|stat| ours.contains(&stat.parent) && !ours.contains(&stat.identity.pid))
            .map(|stat| stat.identity.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        ours.extend(more);
    }
    all.into_iter().map(|stat| stat.identity).filter(|identity| ours.contains(&identity.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.identity, Identity { pid: 42, started: 987_654 });
        assert_eq!((stat.state, stat.parent, stat.session), ('S', 7, 41));
    }

    #[test]
    fn this_process_is_alive_and_an_earlier_one_of_its_number_is_not() {
        let me = Stat::of(i32::try_from(std::process::id()).unwrap()).unwrap().identity;
        assert!(me.alive());
        assert!(!Identity { started: me.started - 1, ..me }.alive());
    }
}
