//! The description of a placement's job.

use crate::config::{Config, Driver, Pool};
use agent_api::LaunchFile;
use compute::{Demand, Placement};
use serde_json::{Value, json};

/// For whom the identity is that agents show. Not for Nomad itself: it opens none of Nomad's API.
pub(crate) const AUDIENCE: &str = "gantry";
/// Name of the job's one group and of its one task.
const AGENT: &str = "agent";

/// What a task counts for that does not say what it needs.
const DEFAULT_MILLIS: u32 = 100;
const DEFAULT_MEMORY_MIB: u64 = 300;
/// The least that Nomad takes.
const LEAST_MEMORY_MIB: u64 = 10;

/// For so long Nomad waits for a machine that it cannot reach before it calls its tasks lost. Longer than any lease: until
/// then a machine that comes back goes on with what it runs.
const LOST_AFTER_SECONDS: u64 = 600;
/// How long an identity is good for; Nomad renews it in its file.
const IDENTITY_SECONDS: u64 = 3600;

const fn nanos(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

/// The job. Nothing in it is secret: whoever may read jobs sees all of it.
pub(crate) fn of(placement: &Placement, pool: &Pool, config: &Config) -> Value {
    let mut job = json!({
        "ID": placement.name,
        "Name": placement.name,
        "Namespace": pool.namespace,
        "Type": "batch",
        "Datacenters": pool.datacenters,
        "NodePool": pool.node_pool,
        "Constraints": pool.constraints.iter().map(|constraint| json!({
            "LTarget": constraint.attribute,
            "Operand": constraint.operator,
            "RTarget": constraint.value,
        })).collect::<Vec<_>>(),
        "TaskGroups": [{
            "Name": AGENT,
            "Count": 1,
            // Exclusivity comes from the task's epoch, and Nomad has no part in it.
            "RestartPolicy": { "Attempts": 0, "Mode": "fail" },
            "ReschedulePolicy": { "Attempts": 0, "Unlimited": false },
            "Disconnect": {
                "LostAfter": nanos(LOST_AFTER_SECONDS),
                "Replace": false,
                "Reconcile": "keep_original",
            },
            "Tasks": [{
                "Name": AGENT,
                "Driver": match pool.driver { Driver::RawExec => "raw_exec", Driver::Docker { .. } => "docker" },
                "Config": driver(pool),
                "Env": { (agent_api::LAUNCH_VARIABLE): launch(pool, config) },
                "KillSignal": "SIGTERM",
                "KillTimeout": u64::try_from(config.kill_timeout.as_nanos()).unwrap_or(u64::MAX),
                "Identities": [{
                    "Name": AUDIENCE,
                    "Audience": [AUDIENCE],
                    "File": true,
                    "TTL": nanos(IDENTITY_SECONDS),
                }],
                "Resources": resources(&placement.demand, pool),
                "LogConfig": { "MaxFiles": 2, "MaxFileSizeMB": 5 },
            }],
        }],
    });
    if !pool.region.is_empty() {
        job["Region"] = pool.region.clone().into();
    }
    job
}

/// Arguments are the same for all drivers; Nomad fills in the paths.
fn driver(pool: &Pool) -> Value {
    let args =
        ["--placed", "${NOMAD_TASK_DIR}/agent", &format!("${{NOMAD_SECRETS_DIR}}/nomad_{AUDIENCE}.jwt")];
    match &pool.driver {
        Driver::RawExec => json!({ "command": pool.agent, "args": args }),
        Driver::Docker { image } => json!({
            "image": image,
            "command": pool.agent,
            "args": args,
            // What the image begins with would stand before the agent.
            "entrypoint": [],
            "privileged": false,
            "security_opt": ["no-new-privileges"],
        }),
    }
}

fn launch(pool: &Pool, config: &Config) -> String {
    let launch = LaunchFile {
        endpoint: config.endpoint.trim_end_matches('/').to_owned(),
        token: String::new(),
        isolation: pool.isolation.clone(),
        job_user: pool.job_user,
        hide: if pool.isolation == "namespace" {
            vec!["${NOMAD_SECRETS_DIR}".to_owned()]
        } else {
            Vec::new()
        },
        engine: pool.engine.clone(),
        cgroup: None,
        ssh: config.ssh.clone(),
        max_run_ms: None,
    };
    json!(launch).to_string()
}

fn resources(demand: &Demand, pool: &Pool) -> Value {
    let millis = u64::from(demand.cpu_millis.unwrap_or(DEFAULT_MILLIS));
    let memory = demand.memory_bytes.map_or(DEFAULT_MEMORY_MIB, |bytes| bytes >> 20);
    json!({
        "CPU": (millis * u64::from(pool.mhz) / 1000).max(1),
        "MemoryMB": memory.max(LEAST_MEMORY_MIB),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Constraint,
        tests::{config, placement, pool},
    };

    fn task(job: &Value) -> &Value {
        &job["TaskGroups"][0]["Tasks"][0]
    }

    #[test]
    fn the_token_is_nowhere_in_the_job() {
        let (placement, pool) = (placement("medium", 1), pool("", ""));
        let job = of(&placement, &pool, &config(vec![pool.clone()]));
        assert!(!job.to_string().contains("one-time"), "{job}");
        let launch = task(&job)["Env"]["GANTRY_LAUNCH"].as_str().unwrap();
        let launch: LaunchFile = serde_json::from_str(launch).unwrap();
        assert_eq!((launch.endpoint.as_str(), launch.token.as_str()), ("http://127.0.0.1:8585", ""));
    }

    #[test]
    fn nomad_may_start_it_once() {
        let pool = pool("", "");
        let job = of(&placement("medium", 1), &pool, &config(vec![pool.clone()]));
        let group = &job["TaskGroups"][0];
        assert_eq!(job["ID"], "task-01890a5d-ac96-774b-bcce-b302099a8057-1");
        assert_eq!(group["RestartPolicy"], json!({ "Attempts": 0, "Mode": "fail" }));
        assert_eq!(group["ReschedulePolicy"], json!({ "Attempts": 0, "Unlimited": false }));
        assert_eq!(group["Disconnect"]["Replace"], false);
    }

    #[test]
    fn a_class_becomes_resources_and_constraints() {
        let constraint = Constraint {
            attribute: "${attr.cpu.arch}".to_owned(),
            operator: "=".to_owned(),
            value: "arm64".to_owned(),
        };
        let pool = Pool { constraints: vec![constraint], mhz: 2400, ..pool("", "eu") };
        let job = of(&placement("medium", 1), &pool, &config(vec![pool.clone()]));
        assert_eq!(task(&job)["Resources"], json!({ "CPU": 6000, "MemoryMB": 3072 }));
        let wanted = json!([{ "LTarget": "${attr.cpu.arch}", "Operand": "=", "RTarget": "arm64" }]);
        assert_eq!(job["Constraints"], wanted);
        assert_eq!(job["Region"], "eu");
        let nothing = resources(&Demand::default(), &pool);
        assert_eq!(nothing, json!({ "CPU": 240, "MemoryMB": 300 }));
    }

    #[test]
    fn a_container_has_no_privileges() {
        let pool = Pool { driver: Driver::Docker { image: "agent:1".to_owned() }, ..pool("", "") };
        let job = of(&placement("medium", 1), &pool, &config(vec![pool.clone()]));
        assert_eq!(task(&job)["Driver"], "docker");
        let config = &task(&job)["Config"];
        assert_eq!(
            (config["image"].as_str(), config["privileged"].as_bool()),
            (Some("agent:1"), Some(false))
        );
        assert!(config.get("volumes").is_none() && config.get("mounts").is_none());
    }
}
