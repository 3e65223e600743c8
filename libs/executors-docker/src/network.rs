//! The network of all tasks' containers. One for all: each task has a network namespace of its own, the bridge
//! carries nothing from one to another, and there is no limit to their number. A task with an engine of its own has
//! one more network, in which there is nobody but both.

use crate::{Engine, Error, Order, PLACEMENT_LABEL, engine::status};
use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};
use std::collections::HashMap;

/// The network's id; it is made unless it is there.
///
/// Older engines let two agents make one each, of the same name. So it is known by its id, and of several the oldest
/// is the one: whoever made a younger one takes it away again.
pub(crate) async fn ensure(engine: &Engine) -> Result<String, Error> {
    if let Some(id) = oldest(engine).await? {
        return Ok(id);
    }
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let request = NetworkCreateRequest {
        name: engine.config.network.clone(),
        driver: Some("bridge".into()),
        options: Some(HashMap::from([option("com.docker.network.bridge.enable_icc", "false")])),
        labels: Some(HashMap::from([option("gantry.network", "tasks")])),
        ..NetworkCreateRequest::default()
    };
    let made = match engine.api.create_network(request).await {
        Ok(made) => Some(made.id),
        Err(error) if status(&error) == Some(409) => None,
        Err(error) => return Err(error.into()),
    };
    let id = oldest(engine).await?.ok_or_else(|| Error::Refused("the network cannot be made".into()))?;
    if let Some(made) = made.filter(|made| *made != id) {
        engine.api.remove_network(&made).await?;
    }
    Ok(id)
}

async fn oldest(engine: &Engine) -> Result<Option<String>, Error> {
    let name = &engine.config.network;
    // The filter takes parts of names too.
    let filters = HashMap::from([("name".to_owned(), vec![name.clone()])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let found = engine.api.list_networks(Some(options)).await?;
    let of_name = found.into_iter().filter(|network| network.name.as_ref() == Some(name));
    let mut by_age: Vec<(Option<String>, String)> =
        of_name.filter_map(|network| Some((network.created.map(|at| at.to_string()), network.id?))).collect();
    by_age.sort();
    Ok(by_age.into_iter().next().map(|(_, id)| id))
}

/// Makes the network of a task and its own engine. Its id.
pub(crate) async fn of_task(engine: &Engine, order: &Order) -> Result<String, Error> {
    let request = NetworkCreateRequest {
        name: format!("{}-{}", engine.config.network, order.placement),
        driver: Some("bridge".into()),
        labels: Some(HashMap::from([(PLACEMENT_LABEL.to_owned(), order.placement.clone())])),
        ..NetworkCreateRequest::default()
    };
    Ok(engine.api.create_network(request).await?.id)
}

/// Whether no network of a placement is left; else one is still in use.
pub(crate) async fn remove_all(engine: &Engine, placement: &str) -> Result<bool, Error> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{PLACEMENT_LABEL}={placement}")])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let mut gone = true;
    for id in engine.api.list_networks(Some(options)).await?.into_iter().filter_map(|network| network.id) {
        match engine.api.remove_network(&id).await {
            Ok(()) => {}
            Err(error) => match status(&error) {
                Some(404) => {}
                // A container that is being removed is in it yet.
                Some(403 | 409) => gone = false,
                _ => return Err(error.into()),
            },
        }
    }
    Ok(gone)
}
