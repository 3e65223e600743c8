//! What the engine is asked for: the containers of a task with everything that keeps them apart (security §8).

use crate::{Order, PLACEMENT_LABEL, PROGRAMS, engine::Config, images::Image};
use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, NetworkingConfig,
    RestartPolicy, RestartPolicyNameEnum,
};
use model::plan::Container;
use std::collections::HashMap;

/// What containers may do as root: what package managers and servers need to change users and owners. Not: raw
/// packets (others' addresses on the bridge), devices, audit control, rights over other files' rights.
const CAPABILITIES: [&str; 11] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
];

/// What all containers of a task have in common.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) order: &'a Order,
    pub(crate) config: &'a Config,
    /// The control group that bounds all of them together.
    pub(crate) parent: Option<&'a str>,
}

/// The primary container, in a network and with the programs of a carrier: its first process is the agent's.
pub(crate) fn primary(
    frame: Frame<'_>,
    image: &Image,
    (network, carrier): (&str, &str),
) -> ContainerCreateBody {
    let order = frame.order;
    let container = &order.containers[0];
    let names = order.containers.iter().filter_map(|container| container.name.as_ref());
    let host = HostConfig {
        network_mode: Some(network.to_owned()),
        // All share one network namespace, so that every name is this machine (execution §22).
        extra_hosts: Some(names.map(|name| format!("{name}:127.0.0.1")).collect()),
        volumes_from: Some(vec![format!("{carrier}:ro")]),
        ..shared(frame)
    };
    ContainerCreateBody {
        entrypoint: Some(vec![format!("{PROGRAMS}/gantry-runner"), executors::GUEST_ARGUMENT.into()]),
        cmd: Some(Vec::new()),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        host_config: Some(host),
        ..body(order, container, image)
    }
}

/// A service container.
pub(crate) fn service(
    frame: Frame<'_>,
    container: &Container,
    image: &Image,
    primary: &str,
) -> ContainerCreateBody {
    let host = HostConfig { network_mode: Some(format!("container:{primary}")), ..shared(frame) };
    ContainerCreateBody {
        entrypoint: container.entrypoint.clone(),
        cmd: container.command.clone(),
        host_config: Some(host),
        ..body(frame.order, container, image)
    }
}

/// The process that a primary container is to have beside the agent's, if any: its entrypoint is ignored unless the
/// job or the image says otherwise (execution §22).
pub(crate) fn own_process(container: &Container, image: &Image) -> Option<Vec<String>> {
    let given = container.entrypoint.is_some() || container.command.is_some();
    if !given && !image.preserves_entrypoint() {
        return None;
    }
    let empty = Vec::new();
    let of_image = image.config.entrypoint.as_ref().unwrap_or(&empty);
    let entrypoint = container.entrypoint.as_ref().unwrap_or(of_image);
    // As engines do it: another entrypoint takes the image's command away.
    let command = match (&container.command, &container.entrypoint) {
        (Some(command), _) => command,
        (None, Some(_)) => &empty,
        (None, None) => image.config.cmd.as_ref().unwrap_or(&empty),
    };
    let words: Vec<String> =
        entrypoint.iter().chain(command).filter(|word| !word.is_empty()).cloned().collect();
    (!words.is_empty()).then_some(words)
}

fn body(order: &Order, container: &Container, image: &Image) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(image.id.clone()),
        user: container.user.clone(),
        env: Some(container.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        labels: Some(HashMap::from([
            (PLACEMENT_LABEL.to_owned(), order.placement.clone()),
            ("gantry.task".to_owned(), order.task.clone()),
        ])),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        // Nobody waits for it, and each check is a process.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        ..ContainerCreateBody::default()
    }
}

/// A job's own engine: the only container that is privileged, because an engine makes namespaces, mounts and networks.
pub(crate) fn dedicated_engine(
    order: &Order,
    config: &Config,
    image: &Image,
    (network, alias, certificates): (&str, &str, &str),
) -> ContainerCreateBody {
    // It stands for a machine beside the job's.
    let shared = shared(Frame { order, config, parent: None });
    let host = HostConfig {
        network_mode: Some(network.to_owned()),
        privileged: Some(true),
        cap_drop: None,
        cap_add: None,
        security_opt: None,
        ..shared
    };
    let endpoint = EndpointSettings { aliases: Some(vec![alias.to_owned()]), ..EndpointSettings::default() };
    ContainerCreateBody {
        // The name that its certificate is for.
        hostname: Some(alias.to_owned()),
        // Goes with the container: an engine's layers cannot lie on another engine's.
        volumes: Some(vec!["/var/lib/docker".to_owned()]),
        env: Some(vec![format!("DOCKER_TLS_CERTDIR={certificates}")]),
        networking_config: Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])),
        }),
        host_config: Some(host),
        ..body(order, &Container::default(), image)
    }
}

fn shared(frame: Frame<'_>) -> HostConfig {
    let (limits, config) = (&frame.order.limits, frame.config);
    let memory = limits.memory_bytes.and_then(|bytes| i64::try_from(bytes).ok());
    let security = config.no_new_privileges.then(|| vec!["no-new-privileges:true".to_owned()]);
    HostConfig {
        auto_remove: Some(true),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()),
        security_opt: security,
        pids_limit: Some(config.pids),
        cgroup_parent: frame.parent.map(str::to_owned),
        memory,
        // The same: no swap beside it.
        memory_swap: memory,
        nano_cpus: limits.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
        ipc_mode: Some("private".into()),
        // What is said goes to the agent alone; nothing of it stays on the machine's disk.
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    }
}
