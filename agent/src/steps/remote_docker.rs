//! `setup_remote_docker`: an engine for containers of the job's own (execution §24).

use super::{Ended, Outcome, Runner};
use crate::output::Stream;
use executors::{Error, RemoteDocker};
use std::io;
use tokio::sync::mpsc;

impl Runner {
    pub(super) async fn setup_remote_docker(
        &self,
        layer_caching: bool,
        version: Option<&str>,
        stream: &mut Stream,
    ) -> io::Result<Outcome> {
        let (log, mut texts) = mpsc::unbounded_channel::<String>();
        let made = {
            let mut making = self.sandbox.remote_docker(log);
            loop {
                tokio::select! {
                    made = &mut making => break Some(made),
                    Some(text) = texts.recv() => stream.write(text.as_bytes())?,
                    _ = self.control.until_stopped() => break None,
                }
            }
        };
        while let Ok(text) = texts.try_recv() {
            stream.write(text.as_bytes())?;
        }
        let Some(made) = made else { return self.judge(Ended::Stopped, false, stream) };
        let engine = match made {
            Ok(engine) => engine,
            Err(Error::RemoteDocker(why)) => {
                stream.note(&why)?;
                return Ok(Outcome { status: "failed", exit_code: None });
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        if let Some(version) = version {
            stream.note(&format!(
                "Warning: `version: {version}` has no effect: who operates the server chooses the engine's image."
            ))?;
        }
        if layer_caching {
            stream.note(
                "Warning: `docker_layer_caching` has no effect: the engine begins with no layers. \
                 `docker pull` with `--cache-from`, or a saved cache, brings earlier ones.",
            )?;
        }
        self.use_engine(&engine, stream).await?;
        Ok(Outcome { status: "success", exit_code: None })
    }

    /// Puts what a client needs where the steps to come find it.
    async fn use_engine(&self, engine: &RemoteDocker, stream: &mut Stream) -> io::Result<()> {
        let folder = self.places.data.join("remote-docker");
        for (name, text) in &engine.certificates {
            self.sandbox.write(&folder.join(name), text, 0o600).await.map_err(io::Error::other)?;
        }
        stream.note("Created container accessible with:")?;
        for (name, value) in [
            ("DOCKER_TLS_VERIFY", "1".to_owned()),
            ("DOCKER_HOST", engine.host.clone()),
            ("DOCKER_CERT_PATH", folder.display().to_string()),
            ("DOCKER_MACHINE_NAME", engine.name.clone()),
        ] {
            stream.note(&format!("  {name}={value}"))?;
            self.set_variable(name, value);
        }
        Ok(())
    }
}
