//! Service containers: what they say, and how they end.

use crate::{Engine, Error};
use bollard::{
    errors::Error as ApiError,
    query_parameters::{AttachContainerOptionsBuilder, WaitContainerOptionsBuilder},
};
use executors::Output;
use futures::{StreamExt, TryStreamExt};
use std::{io, pin::Pin};
use tokio::task::JoinHandle;
use tokio_util::io::StreamReader;

/// A service container that runs.
pub struct Service {
    /// Name or image, for people.
    pub name: String,
    /// What it writes.
    pub output: Output,
    /// Its exit code, once it has ended; `None` when the engine did not say it.
    pub exit: JoinHandle<Option<i64>>,
}

/// Listens to a container before it is started, so that nothing is lost.
pub(crate) async fn listen(engine: &Engine, id: &str, name: String) -> Result<Service, Error> {
    let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).build();
    let attached = engine.api.attach_container(id, Some(options)).await?;
    let bytes = attached.output.map_ok(bollard::container::LogOutput::into_bytes).map_err(io::Error::other);
    let bytes: Pin<Box<dyn futures::Stream<Item = _> + Send>> = Box::pin(bytes);
    let options = WaitContainerOptionsBuilder::new().condition("next-exit").build();
    let (api, id) = (engine.api.clone(), id.to_owned());
    let exit = tokio::spawn(async move {
        let mut ends = std::pin::pin!(api.wait_container(&id, Some(options)));
        match ends.next().await {
            Some(Ok(end)) => Some(end.status_code),
            Some(Err(ApiError::DockerContainerWaitError { code, .. })) => Some(code),
            Some(Err(_)) | None => None,
        }
    });
    Ok(Service { name, output: Box::new(StreamReader::new(bytes)), exit })
}
