//! Images: asking for them, and what they say of themselves.

use crate::{Engine, Error, Log, Pull, auth::credentials, engine::status};
use bollard::{
    auth::DockerCredentials,
    models::{ImageConfig, ImageInspect},
    query_parameters::CreateImageOptionsBuilder,
};
use futures::StreamExt;
use model::plan::Container;
use std::time::Instant;

/// Label by which an image keeps its own entrypoint in the primary container (execution §22).
const PRESERVE: &str = "com.circleci.preserve-entrypoint";

/// An image that is on the machine.
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) config: ImageConfig,
}

impl Image {
    pub(crate) fn preserves_entrypoint(&self) -> bool {
        let labels = self.config.labels.as_ref();
        labels.and_then(|labels| labels.get(PRESERVE)).is_some_and(|value| value == "true")
    }
}

/// Gets the image of a container, and says in the log what it was and where it came from.
pub(crate) async fn get(engine: &Engine, container: &Container, log: &Log) -> Result<Image, Error> {
    let name = reference(&container.image);
    let credentials = credentials(container)?;
    let pull = engine.config.pull;
    let mut text = format!("Starting container {}\n", container.image);
    let present = inspect(engine, &name).await?;
    let found = match present {
        // Built here: there is nobody to ask.
        Some(image) if image.repo_digests.as_deref().unwrap_or_default().is_empty() => Some(image),
        Some(image) if pull != Pull::Always => Some(image),
        Some(image) => is_current(engine, &name, &image, credentials.clone()).await?.then_some(image),
        None if pull == Pull::Never => {
            return Err(Error::Job(format!(
                "the image {} is not on this machine, and `[executors.engine] pull = \"never\"` forbids to ask for it",
                container.image
            )));
        }
        None => None,
    };
    let image = match found {
        Some(image) => {
            text.push_str("  image is on this machine already\n");
            image
        }
        None => {
            text.push_str(&format!("  image not found on this machine, downloading {}\n", container.image));
            let began = Instant::now();
            let anonymous = credentials.is_none();
            text.push_str(&download(engine, &name, credentials).await?);
            text.push_str(&format!("  pull stats: {:.1}s\n", began.elapsed().as_secs_f64()));
            if anonymous {
                text.push_str(
                    "  Warning: no registry credentials were given; the registry may limit such pulls\n",
                );
            }
            inspect(engine, &name).await?.ok_or_else(|| Error::Refused(format!("no such image: {name}")))?
        }
    };
    let id = image.id.unwrap_or_default();
    let digest = image.repo_digests.unwrap_or_default().into_iter().next();
    text.push_str(&format!("  using image {}\n", digest.unwrap_or_else(|| format!("{name} ({id})"))));
    log.say(text);
    Ok(Image { id, config: image.config.unwrap_or_default() })
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<ImageInspect>, Error> {
    match engine.api.inspect_image(name).await {
        Ok(image) => Ok(Some(image)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Asks the registry, with the credentials of this job: for an image that others have pulled this is also the
/// question whether this job may have it.
async fn is_current(
    engine: &Engine,
    name: &str,
    image: &ImageInspect,
    credentials: Option<DockerCredentials>,
) -> Result<bool, Error> {
    let answer = engine.api.inspect_registry_image(name, credentials).await.map_err(|error| {
        Error::Refused(format!(
            "{} (the registry is asked for each job; `[executors.engine] pull = \"missing\"` uses what is on the machine)",
            Error::from(error).to_string().trim_start_matches("Error response from daemon: ")
        ))
    })?;
    let current = answer.descriptor.digest.unwrap_or_default();
    let known = image.repo_digests.iter().flatten();
    Ok(known.filter_map(|digest| digest.split_once('@')).any(|(_, digest)| digest == current))
}

async fn download(
    engine: &Engine,
    name: &str,
    credentials: Option<DockerCredentials>,
) -> Result<String, Error> {
    let options = CreateImageOptionsBuilder::new().from_image(name).build();
    let mut lines = std::pin::pin!(engine.api.create_image(Some(options), None, credentials));
    let mut text = String::new();
    while let Some(line) = lines.next().await {
        let line = line?;
        let progress = line.progress_detail.is_some_and(|detail| detail.total.is_some());
        if let (Some(status), false) = (line.status, progress) {
            let of = line.id.map(|id| format!("{id}: ")).unwrap_or_default();
            text.push_str(&format!("  {of}{status}\n"));
        }
    }
    Ok(text)
}

/// The whole name: without tag and digest the engine would get all tags.
fn reference(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') || last.contains(':') { image.to_owned() } else { format!("{image}:latest") }
}
