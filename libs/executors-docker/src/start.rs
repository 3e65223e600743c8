//! Preparing the containers of a task (execution §22).

use crate::{
    Config, Docker, Engine, Error, PROGRAMS, Service, carrier,
    create::{self, Frame},
    engine::{describe, limits_that_do_not_hold},
    images::{self, Image},
    network, service,
};
use bollard::{
    container::LogOutput,
    models::{ContainerCreateBody, SystemInfo, SystemInfoCgroupDriverEnum},
    query_parameters::AttachContainerOptionsBuilder,
};
use bytes::Bytes;
use cgroups::{Bounds, Limits, Unheld};
use executors::{Command, Environment as _, Facts, Io, Remote};
use futures::{StreamExt, future::try_join_all};
use model::plan::Container;
use std::{io, path::PathBuf, pin::Pin, time::Instant};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::io::StreamReader;

/// What is to be prepared.
#[derive(Clone)]
pub struct Order {
    /// Name of the placement, by which a sweep finds everything.
    pub placement: String,
    /// The task's id, for people who look at the engine.
    pub task: String,
    /// In file order; the first is the primary one. Credentials are filled in.
    pub containers: Vec<Container>,
    /// What each container may use, and where the machine holds it all of them together.
    pub limits: Limits,
    /// The agent's program. Static: images have their own libraries or none.
    pub program: PathBuf,
}

/// Takes lines of the spin-up step as they come.
#[derive(Clone)]
pub struct Log(mpsc::UnboundedSender<String>);

impl Log {
    /// A log, and where its texts arrive. Each ends with a line feed.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (texts, arriving) = mpsc::unbounded_channel();
        (Self(texts), arriving)
    }

    /// A log whose texts are taken there.
    pub(crate) fn to(texts: mpsc::UnboundedSender<String>) -> Self {
        Self(texts)
    }

    /// Adds to the log.
    pub fn say(&self, text: impl Into<String>) {
        // Nobody reads: the task is over.
        let _ = self.0.send(text.into());
    }
}

/// Pulls the images and starts the containers. After an error, or when the future is dropped before its end, what
/// was made is left to [`crate::sweep()`].
///
/// # Errors
/// What the engine or a registry refused, in words for the author of the job.
pub async fn start(engine: &Engine, order: &Order, log: &Log) -> Result<(Docker, Vec<Service>), Error> {
    if order.containers.is_empty() {
        return Err(Error::Job("a docker job names at least one image".into()));
    }
    let pulls = try_join_all(order.containers.iter().map(|container| images::get(engine, container, log)));
    let (info, images, network) = tokio::try_join!(engine.info(), pulls, network::ensure(engine))?;
    log.say(describe(&info));
    for limit in limits_that_do_not_hold(&info) {
        log.say(format!("Warning: this engine does not hold limits of {limit}\n"));
    }
    let order = &fit(order, &info, log);
    let bounds = together(order, &info, &engine.config, log);
    log.say(describe_limits(order, bounds.is_some()));
    let parent = bounds.as_ref().map(Bounds::as_parent);
    let frame = Frame { order, config: &engine.config, parent: parent.as_deref() };
    let began = Instant::now();
    let primary = create_primary(engine, frame, &images[0], &network).await?;
    let running = start_primary(engine, &primary);
    let others = order.containers.iter().zip(&images).skip(1);
    let services =
        try_join_all(others.map(|(container, image)| prepare(engine, frame, container, image, &primary)));
    let ((remote, facts), services) = tokio::try_join!(running, services)?;
    // The namespace of the primary container exists only now.
    let mut services = try_join_all(services.into_iter().map(|(id, service)| async move {
        engine.api.start_container(&id, None).await?;
        Ok::<_, Error>(service)
    }))
    .await?;
    if bounds.is_some_and(|bounds| !bounds.holds(&primary)) {
        log.say("Warning: the engine has other control groups than this machine: limits hold for each container\n");
    }
    log.say(format!("Time to start containers: {} ms\n", began.elapsed().as_millis()));
    let (failing, failed) = watch::channel(None);
    let docker = Docker {
        engine: engine.clone(),
        order: order.clone(),
        primary,
        remote,
        facts,
        dedicated: Mutex::default(),
        failed,
    };
    if let Some(argv) = create::own_process(&order.containers[0], &images[0]) {
        let dir = images[0].config.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
        services.push(run_own_process(&docker, argv, dir.into(), failing).await?);
    }
    Ok((docker, services))
}

/// Engines refuse limits above what the machine has.
fn fit(order: &Order, info: &SystemInfo, log: &Log) -> Order {
    let mut order = order.clone();
    let there = info.ncpu.and_then(|count| u32::try_from(count).ok()?.checked_mul(1000));
    if let (Some(asked), Some(there)) = (order.limits.cpu_millis, there)
        && asked > there
    {
        let (asked, has) = (f64::from(asked) / 1000.0, there / 1000);
        log.say(format!("Warning: the resource class has {asked} vCPU and this machine only {has}\n"));
        order.limits.cpu_millis = Some(there);
    }
    order
}

/// A group for all containers of a job that has several (execution §22): the limits of each are the engine's own to hold.
fn together(order: &Order, info: &SystemInfo, config: &Config, log: &Log) -> Option<Bounds> {
    if order.containers.len() < 2 || order.limits == Limits::default() {
        return None;
    }
    // With systemd's driver groups are units, which are not to be made beside it.
    if info.cgroup_driver != Some(SystemInfoCgroupDriverEnum::CGROUPFS) {
        return None;
    }
    let limits = Limits { processes: u64::try_from(config.pids).ok(), ..order.limits };
    let (bounds, unheld) = Bounds::make(&order.placement, &limits);
    match Unheld::warning(&unheld) {
        None => Some(bounds),
        Some(warning) => {
            bounds.remove();
            log.say(format!("{warning}\n"));
            None
        }
    }
}

fn describe_limits(order: &Order, together: bool) -> String {
    let text = order.limits.to_string();
    match (text.is_empty(), order.containers.len(), together) {
        (true, ..) => "No limits of processors and memory are configured\n".into(),
        (false, 1, _) => format!("Limits: {text}\n"),
        (false, _, true) => format!("Limits: {text}, for all containers together\n"),
        (false, _, false) => format!("Limits: {text}, for each container and not for all together\n"),
    }
}

async fn create_primary(
    engine: &Engine,
    frame: Frame<'_>,
    image: &Image,
    network: &str,
) -> Result<String, Error> {
    let program = &frame.order.program;
    let name = carrier::name(program)?;
    let body = create::primary(frame, image, (network, &name));
    match create(engine, body.clone()).await {
        Ok(id) => return Ok(id),
        // The programs of this build are not there yet. Engines say so with different statuses.
        Err(error) if error.to_string().contains(&name) => {}
        Err(error) => return Err(error.into()),
    }
    carrier::ensure(engine, program).await?;
    Ok(create(engine, body).await?)
}

pub(crate) async fn create(
    engine: &Engine,
    body: ContainerCreateBody,
) -> Result<String, bollard::errors::Error> {
    Ok(engine.api.create_container(None, body).await?.id)
}

/// Starts the primary container and speaks to its first process.
async fn start_primary(engine: &Engine, id: &str) -> Result<(Remote, Facts), Error> {
    let options =
        AttachContainerOptionsBuilder::new().stream(true).stdin(true).stdout(true).stderr(true).build();
    let attached = engine.api.attach_container(id, Some(options)).await?;
    if let Err(error) = engine.api.start_container(id, None).await {
        let text = Error::from(error).to_string();
        let text = text.trim_start_matches("Error response from daemon: ");
        // An image without the libraries that the program was linked with.
        let hint = if text.contains("no such file or directory") {
            "; the agent must be a static program (scripts/up builds such a one)"
        } else {
            ""
        };
        return Err(Error::Refused(format!("{text}{hint}")));
    }
    let bytes = attached.output.filter_map(|item| {
        let bytes: Option<io::Result<Bytes>> = match item {
            Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
            Ok(other) => {
                let said = String::from_utf8_lossy(&other.into_bytes()).into_owned();
                tracing::warn!(said, "from the container's first process");
                None
            }
            Err(error) => Some(Err(io::Error::other(error))),
        };
        std::future::ready(bytes)
    });
    let bytes: Pin<Box<dyn futures::Stream<Item = _> + Send>> = Box::pin(bytes);
    let (remote, facts) = Remote::open(StreamReader::new(bytes), attached.input).await.map_err(|_| {
        Error::Job("the primary container ended before the agent's program in it could say anything".into())
    })?;
    let isolation = "a container of its own".to_owned();
    Ok((remote, Facts { bin: PROGRAMS.into(), isolation, ..facts }))
}

async fn prepare(
    engine: &Engine,
    frame: Frame<'_>,
    container: &Container,
    image: &Image,
    primary: &str,
) -> Result<(String, Service), Error> {
    let body = create::service(frame, container, image, primary);
    let id = create(engine, body).await?;
    let name = container.name.clone().unwrap_or_else(|| container.image.clone());
    let service = service::listen(engine, &id, name).await?;
    Ok((id, service))
}

/// Runs the process that the primary container is to have; if it ends, so does the job (execution §22).
async fn run_own_process(
    docker: &Docker,
    argv: Vec<String>,
    dir: PathBuf,
    failing: watch::Sender<Option<String>>,
) -> Result<Service, Error> {
    let mut env: Vec<(String, String)> = docker.facts.environment.clone().into_iter().collect();
    env.push(("HOME".into(), docker.facts.home.display().to_string()));
    let line = argv.join(" ");
    let command = Command { argv, env, dir, make_dir: false, io: Io::Interactive };
    let process = docker.spawn(command).await.map_err(|e| Error::Job(e.to_string()))?;
    let exit = tokio::spawn(async move {
        let code = process.exit.await.ok()?;
        let why = format!("the process of the primary container (`{line}`) ended with exit code {code}");
        failing.send_replace(Some(why));
        Some(i64::from(code))
    });
    Ok(Service { name: "the primary container's own process".into(), output: process.output, exit })
}
