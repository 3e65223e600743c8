//! What all processes of a task may use together (execution §22), in version 2 of control groups or in the hierarchies of
//! version 1 that have the controllers.

use crate::{FOLDER, placement::remove};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// What a group of ours is called after the name of its placement.
const SUFFIX: &str = ".bounds";
/// The share of a processor is counted over so many microseconds.
const PERIOD: u64 = 100_000;
/// After how long an empty group is nobody's.
const ABANDONED: Duration = Duration::from_secs(3600);

static HERE: LazyLock<Hierarchies> = LazyLock::new(Hierarchies::of_this_machine);

/// How much of the machine a task may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory, with no swap beside it.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// `2 vCPU, 4096 MiB of memory`; nothing where nothing is limited.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu_millis.map(|millis| format!("{} vCPU", f64::from(millis) / 1000.0));
        let memory = self.memory_bytes.map(|bytes| format!("{} MiB of memory", bytes >> 20));
        f.write_str(&cpu.into_iter().chain(memory).collect::<Vec<_>>().join(", "))
    }
}

/// A limit that does not hold here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unheld {
    /// `memory`, `processors` or `processes`.
    pub what: &'static str,
    /// Why, for people.
    pub why: String,
}

impl Unheld {
    /// All of them in a line for people, without its end; `None` if there are none.
    pub fn warning(all: &[Self]) -> Option<String> {
        let what: Vec<_> = all.iter().map(|one| one.what).collect();
        let why: BTreeSet<_> = all.iter().map(|one| one.why.as_str()).collect();
        let why: Vec<_> = why.into_iter().collect();
        (!all.is_empty()).then(|| {
            format!("Warning: this machine does not hold limits of {}: {}", what.join(", "), why.join("; "))
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    version: Version,
    controllers: BTreeSet<String>,
}

/// Where controllers are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Those that are mounted here.
    fn of_this_machine() -> Self {
        Self::mounted(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
    }

    /// Those of a text like `/proc/self/mounts`.
    fn mounted(mounts: &str) -> Self {
        let found = mounts.lines().filter_map(|line| {
            let [_, root, kind, options] = line.split(' ').take(4).collect::<Vec<_>>()[..] else {
                return None;
            };
            let root = PathBuf::from(root);
            let (version, controllers) = match kind {
                "cgroup" => (Version::V1, options.replace(',', " ")),
                "cgroup2" => {
                    (Version::V2, fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default())
                }
                _ => return None,
            };
            let controllers = controllers.split_whitespace().map(str::to_owned).collect();
            Some(Hierarchy { root, version, controllers })
        });
        Self(found.collect())
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| hierarchy.controllers.contains(controller))
    }
}

impl Hierarchy {
    fn folder(&self) -> PathBuf {
        self.root.join(FOLDER)
    }

    /// Makes the group and sets one limit, by its files in this order.
    fn limit(&self, name: &str, controller: &str, files: &[(&str, String)]) -> Result<PathBuf, String> {
        let group = self.folder().join(name);
        let said = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        fs::create_dir_all(&group).map_err(said(&group))?;
        if self.version == Version::V2 {
            // Refused where it is handed down already and we may not change it: then the file below is there.
            for above in [&self.root, &self.folder()] {
                let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        for (file, value) in files {
            let path = group.join(file);
            match fs::write(&path, value) {
                // Without accounting of swap there is no such file.
                Err(_) if file.contains("sw") && !path.exists() => {}
                result => result.map_err(said(&path))?,
            }
        }
        Ok(group)
    }
}

/// Controllers, and what people call what they limit.
const CONTROLLERS: [(&str, &str); 3] = [("memory", "memory"), ("cpu", "processors"), ("pids", "processes")];

/// Files of a controller with what is written to them, in this order; `None`: it has nothing to limit.
fn files(controller: &str, version: Version, limits: &Limits) -> Option<Vec<(&'static str, String)>> {
    let quota = limits.cpu_millis.map(|millis| u64::from(millis) * PERIOD / 1000);
    Some(match (controller, version) {
        ("memory", Version::V1) => {
            let bytes = limits.memory_bytes?.to_string();
            vec![("memory.limit_in_bytes", bytes.clone()), ("memory.memsw.limit_in_bytes", bytes)]
        }
        ("memory", Version::V2) => {
            vec![("memory.max", limits.memory_bytes?.to_string()), ("memory.swap.max", "0".to_owned())]
        }
        ("cpu", Version::V1) => {
            vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota?.to_string())]
        }
        ("cpu", Version::V2) => vec![("cpu.max", format!("{} {PERIOD}", quota?))],
        _ => vec![("pids.max", limits.processes?.to_string())],
    })
}

/// The group of a task whose limits hold. It stays until [`Bounds::end`] or [`Bounds::remove`].
#[derive(Debug)]
pub struct Bounds {
    name: String,
    limits: Limits,
    /// One in version 2; in version 1 one in each hierarchy.
    groups: Vec<PathBuf>,
    /// How many processes were seen to be ended for want of memory.
    seen: AtomicU64,
}

impl Bounds {
    /// Makes the group of a placement and sets what can be set; what cannot is told.
    pub fn make(placement: &str, limits: &Limits) -> (Self, Vec<Unheld>) {
        Self::make_in(&HERE, placement, limits)
    }

    /// The same in hierarchies elsewhere.
    fn make_in(hierarchies: &Hierarchies, placement: &str, limits: &Limits) -> (Self, Vec<Unheld>) {
        let name = format!("{placement}{SUFFIX}");
        let (mut groups, mut unheld) = (BTreeSet::new(), Vec::new());
        for (controller, what) in CONTROLLERS {
            let found = hierarchies.with(controller);
            let version = found.map_or(Version::V2, |hierarchy| hierarchy.version);
            let Some(files) = files(controller, version, limits) else { continue };
            let held = found
                .ok_or_else(|| format!("this machine has no control groups for {what}"))
                .and_then(|hierarchy| hierarchy.limit(&name, controller, &files));
            match held {
                Ok(group) => drop(groups.insert(group)),
                Err(why) => unheld.push(Unheld { what, why }),
            }
        }
        sweep(hierarchies);
        let bounds =
            Self { name, limits: *limits, groups: groups.into_iter().collect(), seen: AtomicU64::new(0) };
        (bounds, unheld)
    }

    /// Folders of the group: who is to be bound writes itself to `cgroup.procs` in each.
    pub fn groups(&self) -> &[PathBuf] {
        &self.groups
    }

    /// The group as a container engine on this machine names it.
    pub fn as_parent(&self) -> String {
        format!("/{FOLDER}/{}", self.name)
    }

    /// How much memory there is.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.limits.memory_bytes
    }

    /// Whether something with this name, the id of a container, is bound.
    pub fn holds(&self, child: &str) -> bool {
        !self.groups.is_empty() && self.groups.iter().all(|group| group.join(child).exists())
    }

    /// Whether the kernel has ended a process for want of memory since this was asked before.
    pub fn ran_out_of_memory(&self) -> bool {
        let counted = self.groups.iter().map(|group| oom_kills(group)).sum();
        self.seen.swap(counted, Ordering::Relaxed) < counted
    }

    /// Removes the group, in which nothing is any more.
    pub fn remove(&self) {
        self.groups.iter().for_each(|group| remove(group));
    }

    /// Ends what is left in the group of a placement and removes it; without effect where there is none.
    ///
    /// # Errors
    /// Something in it does not end before the limit.
    pub async fn end(placement: &str, limit: Duration) -> io::Result<()> {
        let name = format!("{placement}{SUFFIX}");
        for group in HERE.0.iter().map(|hierarchy| hierarchy.folder().join(&name)) {
            let asked = Instant::now();
            while group.exists() {
                for pid in members(&group) {
                    // It may have ended meanwhile.
                    let _ = kill(pid, Signal::SIGKILL);
                }
                remove(&group);
                if asked.elapsed() > limit {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if group.exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        Ok(())
    }
}

/// How many processes of a group the kernel has ended for want of memory, by what the group's folder says in either version.
pub fn oom_kills(group: &Path) -> u64 {
    let texts = ["memory.events", "memory.oom_control"].map(|file| fs::read_to_string(group.join(file)));
    let count = |text: String| {
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    };
    texts.into_iter().flatten().filter_map(count).sum()
}

/// The processes of a group and of those below it.
fn members(group: &Path) -> Vec<Pid> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<Pid> = own.lines().filter_map(|line| Some(Pid::from_raw(line.parse().ok()?))).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(members(&entry.path()));
        }
    }
    all
}

/// Removes groups whose agents came to a sudden end where nobody cleaned up after them. One with processes is not removed by
/// the kernel; a young one may be made and not filled yet.
fn sweep(hierarchies: &Hierarchies) {
    for hierarchy in &hierarchies.0 {
        for entry in fs::read_dir(hierarchy.folder()).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().ends_with(SUFFIX);
            let made =
                entry.metadata().and_then(|data| data.modified()).unwrap_or_else(|_| SystemTime::now());
            if ours && made.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { cpu_millis: Some(1500), memory_bytes: Some(64 << 20), processes: Some(100) };

    fn read(group: &Path, file: &str) -> String {
        fs::read_to_string(group.join(file)).unwrap_or_default()
    }

    #[test]
    fn version_2_has_all_in_one_group() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        let mounts = format!("cgroup2 {} cgroup2 rw,nosuid 0 0\n", root.path().display());
        let (bounds, unheld) = Bounds::make_in(&Hierarchies::mounted(&mounts), "task-1", &LIMITS);
        assert_eq!(unheld, []);
        let group = root.path().join("gantry/task-1.bounds");
        assert_eq!(bounds.groups(), std::slice::from_ref(&group));
        assert_eq!(bounds.as_parent(), "/gantry/task-1.bounds");
        assert_eq!(read(&group, "memory.max"), (64 << 20).to_string());
        assert_eq!(read(&group, "cpu.max"), "150000 100000");
        assert_eq!(read(&group, "pids.max"), "100");
    }

    #[test]
    fn version_1_has_a_group_in_each_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        let mounts = format!(
            "proc /proc proc rw 0 0\ncgroup {} cgroup rw,relatime,memory 0 0\ncgroup {} cgroup rw,cpu,cpuacct 0 0\n",
            at("memory"),
            at("cpu")
        );
        let (bounds, unheld) = Bounds::make_in(&Hierarchies::mounted(&mounts), "task-1", &LIMITS);
        assert_eq!(unheld.len(), 1);
        assert_eq!(unheld[0].what, "processes");
        assert_eq!(bounds.groups().len(), 2);
        let (cpu, memory) = (&bounds.groups()[0], &bounds.groups()[1]);
        assert_eq!(read(memory, "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(
            (read(cpu, "cpu.cfs_period_us"), read(cpu, "cpu.cfs_quota_us")),
            ("100000".into(), "150000".into())
        );
    }

    #[test]
    fn what_cannot_be_made_is_told() {
        let (bounds, unheld) = Bounds::make_in(&Hierarchies::mounted(""), "task-1", &LIMITS);
        let said = Unheld::warning(&unheld).unwrap();
        assert!(
            said.starts_with("Warning: this machine does not hold limits of memory, processors, processes: "),
            "{said}"
        );
        assert_eq!(LIMITS.to_string(), "1.5 vCPU, 64 MiB of memory");
        assert!(bounds.groups().is_empty() && !bounds.holds("x") && !bounds.ran_out_of_memory());
    }

    /// With what this machine has, if it lets us.
    #[tokio::test]
    async fn a_real_group_counts_and_is_ended() {
        let placement = format!("test-{}", std::process::id());
        let (bounds, unheld) = Bounds::make(&placement, &Limits { processes: Some(50), ..Limits::default() });
        if !unheld.is_empty() {
            eprintln!("left out: {unheld:?}");
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for group in bounds.groups() {
            fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
            assert!(read(group, "cgroup.procs").contains(&child.id().to_string()));
            assert_eq!(read(group, "pids.max").trim(), "50");
        }
        let reaped = std::thread::spawn(move || child.wait());
        Bounds::end(&placement, Duration::from_secs(10)).await.unwrap();
        assert!(!reaped.join().unwrap().unwrap().success());
        assert!(bounds.groups().iter().all(|group| !group.exists()));
    }
}
