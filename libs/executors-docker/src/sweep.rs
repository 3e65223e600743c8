//! Removing what is left of a task.

use crate::{Engine, Error, PLACEMENT_LABEL, engine::status, network};
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use cgroups::Bounds;
use futures::future::try_join_all;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long the engine may take to remove a container that it is removing already.
const LIMIT: Duration = Duration::from_secs(20);

/// Ends and removes every container of a placement, whatever state it is in, its networks and its control group.
///
/// # Errors
/// The engine refused, or does not get it done.
pub async fn sweep(engine: &Engine, placement: &str) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let ids = list(engine, placement).await?;
        if ids.is_empty() && network::remove_all(engine, placement).await? {
            let stuck = |e| Error::Refused(format!("the control group of {placement} is not removed: {e}"));
            return Bounds::end(placement, LIMIT).await.map_err(stuck);
        }
        if began.elapsed() > LIMIT {
            return Err(Error::Refused(format!(
                "containers or networks of {placement} are not removed: {}",
                ids.join(", ")
            )));
        }
        let all = try_join_all(ids.iter().map(|id| remove(engine, id))).await?;
        if !all.into_iter().all(|gone| gone) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn list(engine: &Engine, placement: &str) -> Result<Vec<String>, Error> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{PLACEMENT_LABEL}={placement}")])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let found = engine.api.list_containers(Some(options)).await?;
    Ok(found.into_iter().filter_map(|container| container.id).collect())
}

/// Whether it is gone; else the engine is about to remove it.
pub(crate) async fn remove(engine: &Engine, id: &str) -> Result<bool, Error> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine.api.remove_container(id, Some(options)).await {
        Ok(()) => Ok(true),
        Err(error) => match status(&error) {
            Some(404) => Ok(true),
            Some(409) => Ok(false),
            _ => Err(error.into()),
        },
    }
}
