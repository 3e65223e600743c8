//! The container engine of this machine.

use crate::config::{ComputeKind, Config, DockerPolicy, Executors, ResourceClass};
use compute::{Containers, Local};
use dispatcher::classes::{Class, Classes, For};
use executors_docker::Engine;
use std::sync::Arc;

fn of(executors: &Executors) -> executors_docker::Config {
    let engine = &executors.engine;
    executors_docker::Config {
        socket: engine.socket.clone(),
        pull: engine.pull,
        pids: engine.pids,
        no_new_privileges: engine.no_new_privileges,
        network: engine.network.clone(),
        remote_docker_image: Some(engine.remote_docker_image.clone()).filter(|image| !image.is_empty()),
    }
}

/// What jobs that ask for containers do here: what the configuration says; where it says nothing, the engine if one
/// answers.
pub async fn policy(config: &Config) -> dispatcher::Docker {
    match config.executors.docker {
        DockerPolicy::Engine => dispatcher::Docker::Engine,
        DockerPolicy::Host => dispatcher::Docker::Host,
        DockerPolicy::Refuse => dispatcher::Docker::Refuse,
        // The engines are on other machines, which say by their pool whether they have one.
        DockerPolicy::Auto if config.compute.kind == ComputeKind::Nomad => {
            if config.compute.pools.iter().any(|pool| pool.engine) {
                dispatcher::Docker::Engine
            } else {
                dispatcher::Docker::Refuse
            }
        }
        DockerPolicy::Auto => match Engine::connect(of(&config.executors)).await {
            Ok(_) => dispatcher::Docker::Engine,
            Err(error) => {
                tracing::info!(%error, "jobs that ask for containers are refused");
                dispatcher::Docker::Refuse
            }
        },
    }
}

/// Has agents use the engine, and makes there what all tasks share, while the server goes on starting.
pub fn equip(local: Local, config: &Config, docker: dispatcher::Docker) -> Local {
    if docker != dispatcher::Docker::Engine {
        return local;
    }
    let engine = of(&config.executors);
    let (prepared, program) = (engine.clone(), local.program().to_owned());
    tokio::spawn(async move {
        let made = async { Engine::connect(prepared).await?.prepare(&program).await };
        if let Err(error) = made.await {
            tracing::warn!(%error, "the container engine is not prepared; agents will try");
        }
    });
    local.with_engine(launched(config), Arc::new(Sweeper(engine)))
}

/// What agents are told of the engine of their machine.
pub fn launched(config: &Config) -> agent_api::Engine {
    of(&config.executors).into()
}

/// Asks the engine anew each time: it may have been restarted.
struct Sweeper(executors_docker::Config);

#[async_trait::async_trait]
impl Containers for Sweeper {
    async fn sweep(&self, placement: &str) -> Result<(), String> {
        let engine = Engine::connect(self.0.clone()).await.map_err(|error| error.to_string())?;
        executors_docker::sweep(&engine, placement).await.map_err(|error| error.to_string())
    }
}

/// The resource classes that are known without configuration, and those of the configuration.
pub fn classes(config: &Config) -> Classes {
    let mut all = Classes::default();
    for (name, class) in &config.resource_classes {
        let ResourceClass { executor, cpu, memory_mb } = class;
        // Whole thousandths; what is negative or too large is refused when the configuration is read.
        let class = Class { cpu_millis: (cpu * 1000.0).round() as u32, memory_bytes: memory_mb << 20 };
        for (word, kind) in [("docker", For::Docker), ("machine", For::Machine)] {
            if executor.is_empty() || executor == word {
                all.set(kind, name, class);
            }
        }
    }
    all
}
