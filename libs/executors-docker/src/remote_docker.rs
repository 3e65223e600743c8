//! An engine for containers of a job's own (execution §24), in a container beside those of the job.
//!
//! It is reached through TLS alone, with certificates that its image makes anew for each container, because not only
//! the job's containers reach its address: the machine does too.

use crate::{
    Engine, Error, Log, Order,
    create::dedicated_engine,
    engine::status,
    images, network,
    service::{self, Service},
    start::create,
    sweep::remove,
};
use bollard::{
    exec::{CreateExecOptions, StartExecResults},
    models::NetworkConnectRequest,
    query_parameters::DownloadFromContainerOptionsBuilder,
};
use executors::RemoteDocker;
use futures::{StreamExt, TryStreamExt};
use model::plan::Container;
use std::{
    io::Read,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, task::JoinHandle};

/// Name of the engine for the job's steps.
const NAME: &str = "remote-docker";
/// Where Docker serves its API over TLS.
const PORT: u16 = 2376;
/// Where the image makes certificates, by the variable `DOCKER_TLS_CERTDIR`; a client's are in `client` below it.
const CERTIFICATES: &str = "/certs";
/// Files of a client.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
/// How long the engine may take until it answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long its end may come after that of a command in its container.
const AFTERTHOUGHT: Duration = Duration::from_secs(1);
/// How much of what it said is shown when it does not come up.
const SAID: usize = 4096;

/// A job's own engine, which runs.
pub(crate) struct Dedicated {
    pub(crate) shown: RemoteDocker,
    drain: JoinHandle<()>,
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        self.drain.abort();
    }
}

/// Starts the engine of a task and waits until it answers. What was made when an error comes is left to
/// [`crate::sweep()`].
pub(crate) async fn start(
    engine: &Engine,
    order: &Order,
    primary: &str,
    log: &Log,
) -> Result<Dedicated, Error> {
    let image = engine.config.remote_docker_image.clone().ok_or_else(|| {
        Error::Job(
            "This server has no remote Docker engine. Who operates it turns them on with `[executors.engine] \
             remote_docker_image`, knowing that each runs in a privileged container. Without it, give the job \
             `machine: true` and a machine on which its user may use Docker, such as a runner of your own \
             (`resource_class: NAMESPACE/NAME`), and leave out `setup_remote_docker`."
                .into(),
        )
    })?;
    let began = Instant::now();
    log.say("Allocating a remote Docker Engine\n");
    let container = Container { image, ..Container::default() };
    let image = images::get(engine, &container, log).await?;
    let network = network::of_task(engine, order).await?;
    let body = dedicated_engine(order, &engine.config, &image, (&network, NAME, CERTIFICATES));
    let id = create(engine, body).await?;
    match bring_up(engine, &id, primary, &network).await {
        Ok(dedicated) => {
            let took = began.elapsed().as_secs_f64();
            log.say(format!("Remote Docker Engine is ready after {took:.1} s\n"));
            Ok(dedicated)
        }
        Err(error) => {
            // Another step may try again.
            if let Err(error) = discard(engine, &id, &order.placement).await {
                tracing::warn!(%error, "an engine that did not come up is left to the sweep");
            }
            Err(error)
        }
    }
}

/// Starts the container, and lets the job's network namespace reach it once the engine answers.
async fn bring_up(engine: &Engine, id: &str, primary: &str, network: &str) -> Result<Dedicated, Error> {
    let service = service::listen(engine, id, NAME.into()).await?;
    engine.api.start_container(id, None).await?;
    let drain = Drain::begin(service);
    tokio::select! {
        ready = tokio::time::timeout(PATIENCE, until_it_answers(engine, id)) => match ready {
            Ok(Ok(())) => {}
            // A command in a container that ends fails too, and why the container ended tells more.
            Ok(Err(error)) => return Err(match tokio::time::timeout(AFTERTHOUGHT, drain.over()).await {
                Ok(()) => drain.failed("ended"),
                Err(_) => error,
            }),
            Err(_) => return Err(drain.failed(&format!("does not answer after {} s", PATIENCE.as_secs()))),
        },
        () = drain.over() => return Err(drain.failed("ended")),
    }
    let certificates = certificates(engine, id).await?;
    let request = NetworkConnectRequest { container: primary.to_owned(), endpoint_config: None };
    engine.api.connect_network(network, request).await?;
    let host = format!("tcp://{NAME}:{PORT}");
    Ok(Dedicated { shown: RemoteDocker { name: NAME.into(), host, certificates }, drain: drain.task })
}

async fn discard(engine: &Engine, id: &str, placement: &str) -> Result<(), Error> {
    remove(engine, id).await?;
    network::remove_all(engine, placement).await.map(|_| ())
}

/// Has the container itself wait for its engine: one command, however long it takes.
async fn until_it_answers(engine: &Engine, id: &str) -> Result<(), Error> {
    let script = "until docker version >/dev/null 2>&1; do sleep 0.1; done";
    let command = CreateExecOptions {
        cmd: Some(vec!["sh", "-c", script]),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    };
    let exec = engine.api.create_exec(id, command).await?.id;
    let mut said = Vec::new();
    if let StartExecResults::Attached { mut output, .. } = engine.api.start_exec(&exec, None).await? {
        while let Some(bytes) = output.try_next().await? {
            said.extend_from_slice(&bytes.into_bytes());
        }
    }
    match engine.api.inspect_exec(&exec).await?.exit_code {
        Some(0) => Ok(()),
        code => Err(Error::Job(format!(
            "the remote Docker engine's image cannot say whether its engine is ready (it needs `sh` and `docker`; exit \
             code {}): {}",
            code.unwrap_or(-1),
            String::from_utf8_lossy(&said).trim()
        ))),
    }
}

/// What a client needs, as the image made it.
async fn certificates(engine: &Engine, id: &str) -> Result<Vec<(String, String)>, Error> {
    let folder = format!("{CERTIFICATES}/client");
    let missing = || {
        Error::Job(format!(
            "the image of `[executors.engine] remote_docker_image` has made no {} in $DOCKER_TLS_CERTDIR/client; \
             `docker:28-dind` does",
            FILES.join(", ")
        ))
    };
    let options = DownloadFromContainerOptionsBuilder::new().path(&folder).build();
    let mut archive = Vec::new();
    let mut parts = std::pin::pin!(engine.api.download_from_container(id, Some(options)));
    while let Some(part) = parts.next().await {
        match part {
            Ok(bytes) => archive.extend_from_slice(&bytes),
            Err(error) if status(&error) == Some(404) => return Err(missing()),
            Err(error) => return Err(error.into()),
        }
    }
    let unreadable = |error| Error::Refused(format!("the certificates cannot be read: {error}"));
    let mut found = Vec::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if FILES.contains(&name.as_str()) {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(unreadable)?;
            found.push((name, text));
        }
    }
    if found.len() == FILES.len() { Ok(found) } else { Err(missing()) }
}

/// Reads what the engine says, as long as it runs: it would wait for a reader. The last of it is kept for a reason.
struct Drain {
    said: Arc<Mutex<Vec<u8>>>,
    over: tokio::sync::watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Drain {
    fn begin(mut service: Service) -> Self {
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (ending, over) = tokio::sync::watch::channel(false);
        let kept = Arc::clone(&said);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0u8; 8 * 1024];
            while let Ok(n @ 1..) = service.output.read(&mut buffer).await {
                let mut said = kept.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..n]);
                let excess = said.len().saturating_sub(SAID);
                said.drain(..excess);
            }
            ending.send_replace(true);
        });
        Self { said, over, task }
    }

    async fn over(&self) {
        // Its sender says so before it goes.
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    fn failed(&self, what: &str) -> Error {
        self.task.abort();
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        Error::Job(format!("The remote Docker engine {what}. It said last:\n{}", said.trim_end()))
    }
}
