//! Compiling without a pipeline: what editors and command lines ask for.

use crate::{
    NAME, State,
    compile::{self, Job},
    orbs::Shelf,
};
use bus::once::Failure;
use compiler::{Diagnostic, PipelineValues};
use contracts::{
    Request,
    pipelines::{CompileConfig, CompileReply},
    text::Text,
};
use serde_json::{Map, Value};

pub(crate) async fn config(state: &State, _: &Request, ask: CompileConfig) -> Result<CompileReply, Failure> {
    let failed = |error: anyhow::Error| Failure(bus::failed(NAME)(error));
    let source =
        blobs::text::receive(state.blobs.as_ref(), ask.source).await.map_err(|error| failed(error.into()))?;
    let job = Job { file: "config.yml".into(), ..Job::new(&source, ask.parameters, given(ask.values)) };
    let mut conn = state.store.pool().acquire().await?;
    let found = compile::with_orbs(&mut conn, &Shelf::default(), &ask.orgs, job).await.map_err(failed)?;
    drop(conn);
    let errors = match found {
        Some(Ok((_, compiled))) => {
            let output = blobs::text::send(state.blobs.as_ref(), compiled)
                .await
                .map_err(|error| failed(error.into()))?;
            return Ok(CompileReply { output, errors: Vec::new() });
        }
        Some(Err(found)) => found.iter().map(Diagnostic::one_line).collect(),
        None => vec![compile::too_long().message],
    };
    Ok(CompileReply { output: Text::from(""), errors })
}

/// Values by name, with or without `pipeline.` in front; some that are mostly there for those that are not given.
fn given(values: Map<String, Value>) -> PipelineValues {
    let more = values
        .into_iter()
        .map(|(name, value)| {
            let whole = if name.starts_with("pipeline.") { name } else { format!("pipeline.{name}") };
            (whole, value)
        })
        .collect();
    PipelineValues {
        id: "00000000-0000-0000-0000-000000000001".to_owned(),
        number: 1,
        project_slug: "git/local/example".to_owned(),
        project_type: "git".to_owned(),
        git_url: "https://example.invalid/git/local/example.git".to_owned(),
        branch: Some("main".to_owned()),
        tag: None,
        revision: "0".repeat(40),
        base_revision: None,
        trigger_source: "api".to_owned(),
        more,
    }
}
