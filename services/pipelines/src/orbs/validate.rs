//! Whether a text is an orb.

use super::{Shelf, failed};
use crate::{State, compile};
use bus::once::Failure;
use compiler::{Input, OrbError, OrbRef, OrbText, OrbVersion};
use contracts::{Request, orbs::ValidateOrb, pipelines::CompileReply, text::Text};
use ids::OrgId;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A configuration that does nothing but import the text under test.
const AROUND: &str = "version: 2.1\norbs:\n  orb: gantry/orb@dev:under-test\njobs: {}\nworkflows: {}\n";
/// How messages call the text.
const SHOWN: &str = "orb.yml";

pub(crate) async fn validate(state: &State, _: &Request, ask: ValidateOrb) -> Result<CompileReply, Failure> {
    let source = blobs::text::receive(state.blobs.as_ref(), ask.source).await.map_err(failed)?;
    let errors = match check(state, &source, &ask.orgs).await.map_err(failed)? {
        Ok(_) => return Ok(CompileReply { output: send(state, source).await?, errors: Vec::new() }),
        Err(errors) => errors,
    };
    Ok(CompileReply { output: Text::from(""), errors })
}

async fn send(state: &State, text: String) -> Result<Text, Failure> {
    blobs::text::send(state.blobs.as_ref(), text).await.map_err(failed)
}

/// Reads an orb as the compiler does. The answer is what it imports from the registry, or what is wrong.
pub(super) async fn check(
    state: &State,
    source: &str,
    orgs: &[OrgId],
) -> anyhow::Result<Result<Vec<OrbRef>, Vec<String>>> {
    let shelf = Shelf::default();
    let reference = OrbRef::Registry {
        namespace: "gantry".to_owned(),
        name: "orb".to_owned(),
        version: OrbVersion::Dev("under-test".to_owned()),
    };
    let digest = hex::encode(Sha256::digest(source));
    shelf.put(reference, Ok(OrbText::new(SHOWN, source, digest)));
    let mut conn = state.store.pool().acquire().await?;
    let around = compile::Job { continuation: true, ..compile::Job::of(&Input::new("orb", AROUND)) };
    match compile::with_orbs(&mut conn, &shelf, orgs, around).await? {
        None => return Ok(Err(vec![compile::too_long().message])),
        Some(Err(found)) => return Ok(Err(found.iter().map(compiler::Diagnostic::one_line).collect())),
        Some(Ok(_)) => {}
    }
    let data = match compiler::data(SHOWN, source) {
        Ok(data) => data,
        Err(found) => return Ok(Err(found.iter().map(compiler::Diagnostic::one_line).collect())),
    };
    for key in ["workflows", "parameters", "setup"] {
        if data.get(key).is_some() {
            return Ok(Err(vec![format!("{SHOWN}: an orb has no `{key}`")]));
        }
    }
    let mut imports = Vec::new();
    collect(&data, &mut imports);
    // Asked for, so that an orb that this server lacks is named here and not in the first pipeline.
    for import in &imports {
        if let Err(error) = super::resolve(&mut conn, import, orgs).await? {
            let hint = match error {
                OrbError::NotFound(hint) => hint.unwrap_or_default(),
                other => other.to_string(),
            };
            return Ok(Err(vec![format!("{SHOWN}: cannot find the orb {import}; {hint}")]));
        }
    }
    Ok(Ok(imports))
}

/// References below `orbs`, those of inline orbs included.
fn collect(orb: &Value, imports: &mut Vec<OrbRef>) {
    for import in orb.get("orbs").and_then(Value::as_object).into_iter().flat_map(|map| map.values()) {
        match import {
            Value::String(text) => imports.extend(text.trim().parse::<OrbRef>().ok()),
            inline => collect(inline, imports),
        }
    }
}
