//! The port's adapter: commands run in the primary container.

use crate::{
    Engine,
    remote_docker::{self, Dedicated},
    start::{Log, Order},
    sweep::sweep,
};
use executors::{Command, Environment, Error, Facts, Process, Remote, RemoteDocker, Signal, out_of_memory};
use std::path::Path;
use tokio::sync::{Mutex, mpsc::UnboundedSender, watch};

/// The containers of a task.
pub struct Docker {
    pub(crate) engine: Engine,
    pub(crate) order: Order,
    /// Id of the primary container.
    pub(crate) primary: String,
    pub(crate) remote: Remote,
    pub(crate) facts: Facts,
    /// The job's own engine, once it was asked for.
    pub(crate) dedicated: Mutex<Option<Dedicated>>,
    /// Why the environment failed by itself.
    pub(crate) failed: watch::Receiver<Option<String>>,
}

impl Docker {
    async fn clear(&self) {
        self.remote.close();
        if let Err(error) = sweep(&self.engine, &self.order.placement).await {
            tracing::error!(%error, placement = self.order.placement, "containers of the task are left to the sweep");
        }
    }
}

#[async_trait::async_trait]
impl Environment for Docker {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn spawn(&self, command: Command) -> Result<Process, Error> {
        self.remote.spawn(command).await
    }

    async fn signal(&self, id: u64, signal: Signal) {
        self.remote.signal(id, signal);
    }

    async fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        self.remote.write(path, text, mode).await
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        self.remote.exists(path).await
    }

    async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        let why = failed.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match why {
            Ok(why) => why,
            // Nothing watches: nothing can fail.
            Err(_) => std::future::pending().await,
        }
    }

    async fn explain(&self, exit_code: i32) -> Option<String> {
        if exit_code != 137 || !self.remote.ran_out_of_memory().await {
            return None;
        }
        Some(out_of_memory(self.order.limits.memory_bytes))
    }

    async fn remote_docker(&self, log: UnboundedSender<String>) -> Result<RemoteDocker, Error> {
        let mut dedicated = self.dedicated.lock().await;
        if let Some(there) = &*dedicated {
            return Ok(there.shown.clone());
        }
        let made = remote_docker::start(&self.engine, &self.order, &self.primary, &Log::to(log)).await;
        let made = made.map_err(|error| Error::RemoteDocker(error.to_string()))?;
        Ok(dedicated.insert(made).shown.clone())
    }

    async fn end(&self) {
        self.clear().await;
    }

    async fn remove(&self) {
        self.clear().await;
    }
}
