//! Whether a text is an orb.

use super::{Shelf, failed};
use crate::{State, compile};
use bus::once::Failure;
use compiler::{Diagnostic, Input, OrbError, OrbRef, OrbText, OrbVersion};
use contracts::{Request, orbs::ValidateOrb, pipelines::CompileReply, text::Text};
use ids::OrgId;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

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
    let lines = |found: Vec<Diagnostic>| -> Vec<String> { found.iter().map(Diagnostic::one_line).collect() };
    let data = match compiler::data(SHOWN, source) {
        Ok(data) => data,
        Err(found) => return Ok(Err(lines(found))),
    };
    for key in ["workflows", "parameters", "setup"] {
        if data.get(key).is_some() {
            return Ok(Err(vec![format!("{SHOWN}: an orb has no `{key}`")]));
        }
    }
    let shelf = Shelf::default();
    let reference = OrbRef::Registry {
        namespace: "gantry".to_owned(),
        name: "orb".to_owned(),
        version: OrbVersion::Dev("under-test".to_owned()),
    };
    let digest = hex::encode(Sha256::digest(source));
    shelf.put(reference, Ok(OrbText::new(SHOWN, source, digest)));
    let mut conn = state.store.pool().acquire().await?;
    // First as a configuration of its own that runs nothing: keys and declarations of what nothing calls. A source
    // in one line cannot be added to; it is looked at by what calls it alone.
    let alone = format!("{source}\nworkflows: {{version: 2}}\n");
    if compiler::data(SHOWN, &alone).is_ok() {
        let job = compile::Job { continuation: true, ..compile::Job::of(&Input::new(SHOWN, &alone)) };
        if let Some(Err(found)) = compile::with_orbs(&mut conn, &shelf, orgs, job).await? {
            return Ok(Err(lines(found)));
        }
    }
    let around = around(&data).to_string();
    let job = compile::Job { continuation: true, ..compile::Job::of(&Input::new("orb", &around)) };
    match compile::with_orbs(&mut conn, &shelf, orgs, job).await? {
        None => return Ok(Err(vec![compile::too_long().message])),
        Some(Err(mut found)) => {
            // What is wrong in the orb itself; what only the calls around it cause says less.
            if found.iter().any(|each| each.file == SHOWN) {
                found.retain(|each| each.file == SHOWN);
            }
            return Ok(Err(lines(found)));
        }
        Some(Ok(_)) => {}
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

/// A configuration that calls every command and every job of an orb, so that the compiler looks at all of them. One
/// that needs an argument that cannot be made up is left out.
fn around(orb: &Value) -> Value {
    let elements = |key: &str| -> Vec<(String, Map<String, Value>)> {
        let found = orb.get(key).and_then(Value::as_object).into_iter().flatten();
        found.filter_map(|(name, body)| Some((format!("orb/{name}"), arguments(body)?))).collect()
    };
    let steps: Vec<Value> =
        elements("commands").into_iter().map(|(name, given)| json!({ name: given })).collect();
    let mut jobs = vec![json!("commands")];
    for (at, (name, mut given)) in elements("jobs").into_iter().enumerate() {
        given.insert("name".to_owned(), json!(format!("job-{at}")));
        jobs.push(json!({ name: given }));
    }
    json!({
        "version": 2.1, "orbs": { "orb": "gantry/orb@dev:under-test" },
        "jobs": { "commands": { "machine": true, "steps": steps } },
        "workflows": { "check": { "jobs": jobs } },
    })
}

/// A value for each parameter without a default; `None` where there is none that fits any.
fn arguments(element: &Value) -> Option<Map<String, Value>> {
    let mut given = Map::new();
    for (name, parameter) in element.get("parameters").and_then(Value::as_object).into_iter().flatten() {
        if parameter.get("default").is_some() {
            continue;
        }
        let value = match parameter.get("type").and_then(Value::as_str)? {
            "string" => json!("text"),
            "boolean" => json!(true),
            "integer" => json!(1),
            "env_var_name" => json!("NAME"),
            "steps" => json!([]),
            "enum" => parameter.get("enum")?.get(0)?.clone(),
            _ => return None,
        };
        given.insert(name.clone(), value);
    }
    Some(given)
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
