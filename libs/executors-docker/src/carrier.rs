//! The container that is never started and whose volume holds the agent's program, one per build of it.
//!
//! It gets its name last: a container of that name has a whole volume.

use crate::{Engine, Error, PROGRAMS, engine::status};
use bollard::{
    body_try_stream,
    models::ContainerCreateBody,
    query_parameters::{
        CreateImageOptionsBuilder, RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::HashMap, io, os::unix::fs::MetadataExt, path::Path};
use tokio_util::io::ReaderStream;

/// Where the volume is mounted, in the carrier and in the containers of tasks.
const VOLUME: &str = "/opt/gantry";
const REPOSITORY: &str = "gantry-agent";

/// Size and time of change tell builds apart as well as a digest would, and need no reading of the whole file for
/// every task.
fn version(program: &Path) -> Result<String, Error> {
    let data = std::fs::metadata(program)
        .map_err(|e| Error::Job(format!("the agent's program {} cannot be read: {e}", program.display())))?;
    Ok(format!("{:x}-{:x}-{:x}", data.size(), data.mtime(), data.mtime_nsec()))
}

/// The carrier's name.
pub(crate) fn name(program: &Path) -> Result<String, Error> {
    Ok(format!("{REPOSITORY}-{}", version(program)?))
}

/// Makes the carrier unless it is there.
pub(crate) async fn ensure(engine: &Engine, program: &Path) -> Result<(), Error> {
    let name = name(program)?;
    match engine.api.inspect_container(&name, None).await {
        Ok(_) => return Ok(()),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(error.into()),
    }
    let tag = version(program)?;
    import(engine, program, &tag).await?;
    let body = ContainerCreateBody {
        image: Some(format!("{REPOSITORY}:{tag}")),
        entrypoint: Some(vec![format!("{PROGRAMS}/gantry-runner"), "--version".into()]),
        volumes: Some(vec![VOLUME.to_owned()]),
        labels: Some(HashMap::from([("gantry.carrier".to_owned(), tag)])),
        ..ContainerCreateBody::default()
    };
    let made = engine.api.create_container(None, body).await?.id;
    let options = RenameContainerOptionsBuilder::new().name(&name).build();
    match engine.api.rename_container(&made, options).await {
        Ok(()) => Ok(()),
        // Another agent was faster.
        Err(error) => {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            engine.api.remove_container(&made, Some(options)).await?;
            if status(&error) == Some(409) { Ok(()) } else { Err(error.into()) }
        }
    }
}

/// Makes an image of nothing but the program and its names.
async fn import(engine: &Engine, program: &Path, tag: &str) -> Result<(), Error> {
    let failed = |e: io::Error| Error::Job(format!("the agent's program cannot be read: {e}"));
    let file = tokio::fs::File::open(program).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let folder = PROGRAMS.trim_start_matches('/');
    let mut head =
        header(tar::EntryType::Regular, &format!("{folder}/gantry-runner"), length).map_err(failed)?;
    let mut links = Vec::new();
    for link in executors::PROGRAM_NAMES {
        let mut entry = tar::Header::new_ustar();
        entry.set_link_name("gantry-runner").map_err(failed)?;
        links.extend_from_slice(
            finish(&mut entry, tar::EntryType::Symlink, &format!("{folder}/{link}"), 0).map_err(failed)?,
        );
    }
    let padding = vec![0u8; usize::try_from(length.next_multiple_of(512) - length).unwrap_or_default()];
    head.shrink_to_fit();
    // Two empty blocks end an archive. The program itself is never whole in memory.
    let tail = [padding, links, vec![0u8; 1024]].concat();
    let body = stream::iter([Ok(Bytes::from(head))])
        .chain(ReaderStream::with_capacity(file, 256 * 1024))
        .chain(stream::iter([Ok(Bytes::from(tail))]));
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(REPOSITORY).tag(tag).build();
    let imported = engine.api.create_image(Some(options), Some(body_try_stream(body)), None);
    imported.try_collect::<Vec<_>>().await?;
    Ok(())
}

fn header(kind: tar::EntryType, path: &str, length: u64) -> io::Result<Vec<u8>> {
    let mut entry = tar::Header::new_ustar();
    finish(&mut entry, kind, path, length).map(<[u8]>::to_vec)
}

fn finish<'a>(
    entry: &'a mut tar::Header,
    kind: tar::EntryType,
    path: &str,
    length: u64,
) -> io::Result<&'a [u8]> {
    entry.set_entry_type(kind);
    entry.set_path(path)?;
    entry.set_mode(0o755);
    entry.set_size(length);
    entry.set_cksum();
    Ok(entry.as_bytes())
}
