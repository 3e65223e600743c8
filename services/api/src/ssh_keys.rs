//! SSH keys of a project: checkout keys (api-v2 §7) and additional ones (api-v2 §18 `ssh-key`). A private half comes in
//! and is never shown.

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    path,
    state::App,
    v2::{self, time},
};
use axum::{
    Json,
    body::Bytes,
    http::{Method, StatusCode, Uri},
    response::IntoResponse,
};
use contracts::{
    contexts::{AddSshKey, ListSshKeys, MakeCheckoutKey, RemoveSshKey, SshKeyInfo, SshKeyPurpose},
    domain::Project,
};
use model::permission::Permission;
use serde::Deserialize;
use serde_json::{Value, json};

/// How the two versions of the API show a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    V1,
    V2,
}

fn shown(key: &SshKeyInfo, shape: Shape, sha256: bool) -> Value {
    let kind = if key.kind == "user-key" { "github-user-key" } else { &key.kind };
    let mut out = json!({
        "public_key": key.public_key, "type": kind, "preferred": key.preferred,
        "fingerprint": if sha256 { &key.sha256 } else { &key.md5 },
    });
    let at = if shape == Shape::V1 { "time" } else { "created_at" };
    out[at] = time(key.created_at).into();
    out
}

fn list(items: Vec<Value>, shape: Shape) -> Value {
    match shape {
        Shape::V1 => items.into(),
        Shape::V2 => json!({ "items": items, "next_page_token": null }),
    }
}

#[derive(Deserialize)]
struct NewCheckoutKey {
    #[serde(rename = "type")]
    kind: String,
}

/// `…/checkout-key[/FINGERPRINT]`.
pub async fn checkout(
    app: &App,
    caller: &Caller,
    project: &Project,
    (method, uri, rest): (&Method, &Uri, &[&str]),
    bytes: &Bytes,
    shape: Shape,
) -> Answer {
    app.allow(caller, Permission::WriteProject, project.org_id).await?;
    let (project_id, purpose) = (project.id, SshKeyPurpose::Checkout);
    let sha256 = match path::query(uri, "digest").as_deref() {
        None | Some("md5") => false,
        Some("sha256") => true,
        Some(_) => return Err(Fail::invalid("digest is one of md5, sha256.")),
    };
    match (method.as_str(), rest) {
        ("GET", []) => {
            let keys = app.ask(caller, &ListSshKeys { project_id, purpose }).await?;
            let items = keys.iter().map(|key| shown(key, shape, sha256)).collect();
            Ok(Json(list(items, shape)).into_response())
        }
        ("POST", []) => {
            let new: NewCheckoutKey = v2::body(bytes)?;
            let kind = if new.kind == "github-user-key" { "user-key".to_owned() } else { new.kind };
            let key = app.command(caller, &MakeCheckoutKey { project_id, kind }).await?;
            Ok((StatusCode::CREATED, Json(shown(&key, shape, sha256))).into_response())
        }
        ("GET", [fingerprint]) => {
            let keys = app.ask(caller, &ListSshKeys { project_id, purpose }).await?;
            let key = keys.iter().find(|key| [&*key.md5, &*key.sha256].contains(fingerprint));
            let key = key.ok_or_else(|| Fail::not_found("Checkout key"))?;
            let sha256 = sha256 || key.sha256 == *fingerprint;
            Ok(Json(shown(key, shape, sha256)).into_response())
        }
        ("DELETE", [fingerprint]) => {
            let fingerprint = (*fingerprint).to_owned();
            app.command(caller, &RemoveSshKey { project_id, purpose, fingerprint, hostname: None }).await?;
            Ok(Json(json!({ "message": "Checkout key deleted." })).into_response())
        }
        _ => Err(Fail::not_found("Route")),
    }
}

#[derive(Deserialize)]
struct NewKey {
    #[serde(default)]
    hostname: Option<String>,
    private_key: String,
}

#[derive(Deserialize)]
struct OldKey {
    #[serde(default)]
    hostname: Option<String>,
    fingerprint: String,
}

/// `…/ssh-key`. The list is an addition of ours: CircleCI has it among the project's settings only.
pub async fn additional(
    app: &App,
    caller: &Caller,
    project: &Project,
    method: &Method,
    bytes: &Bytes,
) -> Answer {
    app.allow(caller, Permission::WriteProject, project.org_id).await?;
    let (project_id, purpose) = (project.id, SshKeyPurpose::Additional);
    let host = |hostname: Option<String>| hostname.filter(|hostname| !hostname.is_empty());
    let shown = |key: &SshKeyInfo| {
        json!({
            "hostname": key.hostname, "fingerprint": key.md5, "sha256": key.sha256,
            "public_key": key.public_key, "time": time(key.created_at),
        })
    };
    match method.as_str() {
        "GET" => {
            let keys = app.ask(caller, &ListSshKeys { project_id, purpose }).await?;
            Ok(Json(keys.iter().map(shown).collect::<Vec<_>>()).into_response())
        }
        "POST" => {
            let new: NewKey = v2::body(bytes)?;
            let sealed = v2::seal(app, &new.private_key).await?;
            let ask = AddSshKey { project_id, hostname: host(new.hostname), sealed };
            let key = app.command(caller, &ask).await?;
            Ok((StatusCode::CREATED, Json(shown(&key))).into_response())
        }
        "DELETE" => {
            let old: OldKey = v2::body(bytes)?;
            let (fingerprint, hostname) = (old.fingerprint, host(old.hostname));
            app.command(caller, &RemoveSshKey { project_id, purpose, fingerprint, hostname }).await?;
            Ok(Json(json!({ "message": "SSH key deleted." })).into_response())
        }
        _ => Err(Fail::not_found("Route")),
    }
}
