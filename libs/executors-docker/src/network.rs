//! The network of all tasks' containers. One for all: each task has a network namespace of its own, the bridge
//! carries nothing from one to another, and there is no limit to their number.

use crate::{Engine, Error, engine::status};
use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};
use std::collections::HashMap;

/// Makes the network unless it is there.
pub(crate) async fn ensure(engine: &Engine) -> Result<(), Error> {
    let name = &engine.config.network;
    match engine.api.inspect_network(name, None).await {
        Ok(_) => return Ok(()),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(error.into()),
    }
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".into()),
        options: Some(HashMap::from([option("com.docker.network.bridge.enable_icc", "false")])),
        labels: Some(HashMap::from([option("gantry.network", "tasks")])),
        ..NetworkCreateRequest::default()
    };
    let made = match engine.api.create_network(request).await {
        Ok(made) => made.id,
        Err(error) if status(&error) == Some(409) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Older engines let two agents make one each, and then no container finds "the" network: the first by id stays.
    let filters = HashMap::from([("name".to_owned(), vec![format!("^{name}$")])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let mut ids: Vec<String> =
        engine.api.list_networks(Some(options)).await?.into_iter().filter_map(|network| network.id).collect();
    ids.sort();
    if ids.first().is_some_and(|first| *first != made) {
        engine.api.remove_network(&made).await?;
    }
    Ok(())
}
