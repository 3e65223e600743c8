//! Where Nomad is, and which machines of it serve which classes.

use agent_api::{Engine, JobUser, SshListen};
use compute::{Demand, Placement};
use std::{path::PathBuf, time::Duration};

/// A configuration that cannot be used, or a task that none of its pools serves.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(pub(crate) String);

/// The whole of it.
#[derive(Clone, Default)]
pub struct Config {
    /// For example `https://nomad.example.com:4646`.
    pub address: String,
    /// ACL token that may submit jobs in the pools' namespaces; empty: none is sent.
    pub token: String,
    /// Authorities that Nomad's certificate is checked against, PEM, instead of the machine's.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, PEM, where Nomad asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Where agents reach the suite.
    pub endpoint: String,
    /// How long an agent that is told to end may take before it is killed.
    pub kill_timeout: Duration,
    /// Where jobs that are rerun with SSH are entered, on each machine; `None`: they are not.
    pub ssh: Option<SshListen>,
    /// Machines, by what runs on them.
    pub pools: Vec<Pool>,
}

/// Machines that serve some classes.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Names of resource classes; empty: all.
    pub classes: Vec<String>,
    /// `docker` and `machine` jobs; empty: both.
    pub executors: Vec<String>,
    /// Region; empty: the one of the server that is asked.
    pub region: String,
    /// Namespace, of this installation alone.
    pub namespace: String,
    /// Datacenters; `*` stands for any text.
    pub datacenters: Vec<String>,
    /// Node pool.
    pub node_pool: String,
    /// What machines must have besides.
    pub constraints: Vec<Constraint>,
    /// What starts the agent there.
    pub driver: Driver,
    /// The agent's program: on the machine, or in the image.
    pub agent: String,
    /// What keeps steps from the machine's files: `user`, `namespace` or `none`.
    pub isolation: String,
    /// As whom steps run, with isolation `user`.
    pub job_user: Option<JobUser>,
    /// The container engine of the machines, for jobs that ask for containers.
    pub engine: Option<Engine>,
    /// What Nomad counts for one processor of a class, in MHz.
    pub mhz: u32,
}

/// What starts an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A process of the machine, with nothing around it.
    RawExec,
    /// A container of this image.
    Docker {
        /// The image, which has the agent in it.
        image: String,
    },
}

/// A constraint, as Nomad has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// For example `${attr.cpu.arch}`.
    pub attribute: String,
    /// For example `=`.
    pub operator: String,
    /// For example `arm64`.
    pub value: String,
}

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// What is missing or contradicts itself, by the key's name in the configuration file.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |text: &str| Err(Wrong(text.to_owned()));
        if self.pools.is_empty() {
            return wrong(
                "a Nomad cluster needs at least one [[compute.pools]], which says where tasks run on it",
            );
        }
        if self.endpoint.is_empty() || self.endpoint.starts_with("unix:") {
            return wrong("agents on other machines call the suite: set [agents] url to where they reach it");
        }
        for (at, pool) in self.pools.iter().enumerate() {
            let at = |key: &str, text: &str| Err(Wrong(format!("compute.pools[{at}].{key} {text}")));
            if pool.namespace.is_empty() {
                return at("namespace", "must be set");
            }
            if pool.agent.is_empty() {
                return at("agent", "must name the agent's program there");
            }
            if pool.mhz == 0 {
                return at("mhz", "must be at least 1");
            }
            if pool.datacenters.is_empty() {
                return at("datacenters", "must name one at least; \"*\" stands for all");
            }
            match (pool.isolation.as_str(), pool.job_user) {
                ("user", None) => return at("job_uid", "and job_gid must be set with isolation = \"user\""),
                ("user" | "namespace" | "none", _) => {}
                _ => return at("isolation", "is `user`, `namespace` or `none`"),
            }
            if let Some(odd) =
                pool.executors.iter().find(|word| !["docker", "machine"].contains(&word.as_str()))
            {
                return at("executors", &format!("names `docker` and `machine`, not `{odd}`"));
            }
        }
        Ok(())
    }

    /// The pool that a placement belongs to. Of several that serve its class, its task chooses one, and its next epoch
    /// the next: so a scheduler that does not know whether it has started it comes to the same one, and a task that one
    /// region did not start is tried in another.
    pub(crate) fn pool(&self, placement: &Placement) -> Result<&Pool, Wrong> {
        let fit: Vec<&Pool> = self.pools.iter().filter(|pool| pool.serves(&placement.demand)).collect();
        let task = placement.task_id.uuid().as_u128() % fit.len().max(1) as u128;
        let turn = task + u128::from(placement.epoch.unsigned_abs());
        let chosen = usize::try_from(turn % fit.len().max(1) as u128).unwrap_or_default();
        fit.get(chosen).copied().ok_or_else(|| {
            let Demand { executor, class, .. } = &placement.demand;
            Wrong(format!(
                "no pool of Nomad serves {executor} jobs of the resource class {class}; an administrator adds the class to \
                 one of [[compute.pools]]"
            ))
        })
    }
}

impl Pool {
    fn serves(&self, demand: &Demand) -> bool {
        let named = |list: &[String], word: &str| list.is_empty() || list.iter().any(|entry| entry == word);
        named(&self.classes, &demand.class) && named(&self.executors, &demand.executor)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pool(class: &str, region: &str) -> Pool {
        Pool {
            classes: if class.is_empty() { Vec::new() } else { vec![class.to_owned()] },
            executors: Vec::new(),
            region: region.to_owned(),
            namespace: "ci".to_owned(),
            datacenters: vec!["*".to_owned()],
            node_pool: "default".to_owned(),
            constraints: Vec::new(),
            driver: Driver::RawExec,
            agent: "/usr/local/bin/gantry-runner".to_owned(),
            isolation: "none".to_owned(),
            job_user: None,
            engine: None,
            mhz: 1000,
        }
    }

    pub(crate) fn config(pools: Vec<Pool>) -> Config {
        Config {
            address: "http://127.0.0.1:4646".to_owned(),
            endpoint: "http://127.0.0.1:8585".to_owned(),
            kill_timeout: Duration::from_secs(15),
            ssh: None,
            pools,
            ..Config::default()
        }
    }

    pub(crate) fn placement(class: &str, epoch: i64) -> Placement {
        let task_id = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let demand = Demand {
            executor: "machine".to_owned(),
            class: class.to_owned(),
            cpu_millis: Some(2500),
            memory_bytes: Some(3 << 30),
        };
        Placement {
            name: Placement::name_of(task_id, epoch),
            task_id,
            epoch,
            token: "one-time".to_owned(),
            demand,
        }
    }

    #[test]
    fn a_class_has_its_pools_and_the_next_epoch_goes_to_the_next() {
        let config = config(vec![pool("small", "a"), pool("large", "b"), pool("large", "c")]);
        let region = |class, epoch| config.pool(&placement(class, epoch)).map(|pool| pool.region.as_str());
        assert_eq!(region("small", 1).unwrap(), "a");
        let [first, second, third] = [1, 2, 3].map(|epoch| region("large", epoch).unwrap());
        assert_ne!(first, second);
        assert_eq!(first, third);
        assert_eq!(region("large", 1).unwrap(), first, "the same placement is always in the same place");
        let refused = region("huge", 1).unwrap_err().to_string();
        assert!(refused.contains("huge") && refused.contains("[[compute.pools]]"), "{refused}");
    }

    #[test]
    fn a_pool_serves_the_executors_that_it_names() {
        let containers = Pool { executors: vec!["docker".to_owned()], ..pool("", "a") };
        assert!(config(vec![containers]).pool(&placement("medium", 1)).is_err());
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        let refused = |config: Config| config.check().unwrap_err().to_string();
        assert!(refused(config(Vec::new())).contains("[[compute.pools]]"));
        let local = Config { endpoint: "unix:/x".to_owned(), ..config(vec![pool("", "")]) };
        assert!(refused(local).contains("[agents] url"));
        let bare = Pool { namespace: String::new(), ..pool("", "") };
        assert_eq!(refused(config(vec![pool("", ""), bare])), "compute.pools[1].namespace must be set");
        let user = Pool { isolation: "user".to_owned(), ..pool("", "") };
        assert!(refused(config(vec![user])).contains("job_uid"));
        let odd = Pool { executors: vec!["macos".to_owned()], ..pool("", "") };
        assert!(refused(config(vec![odd])).contains("macos"));
        config(vec![pool("", "")]).check().unwrap();
    }
}
