//! SSH keys of the caller, to enter jobs with: `/api/v1.1/user/ssh-key`. An addition of ours: CircleCI takes the keys that
//! people have where their code is.

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    state::App,
    v2::{self, time},
};
use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode},
    response::IntoResponse,
};
use contracts::domain::{AddUserKey, ListUserKeys, RemoveUserKey, UserKey};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct NewKey {
    public_key: String,
    #[serde(default)]
    label: Option<String>,
}

#[derive(Deserialize)]
struct OldKey {
    fingerprint: String,
}

fn shown(key: &UserKey) -> Value {
    json!({
        "fingerprint": key.sha256, "label": key.label, "public_key": key.public_key, "time": time(key.created_at),
    })
}

/// `GET`, `POST` and `DELETE`.
pub async fn route(State(app): State<App>, caller: Caller, method: Method, bytes: Bytes) -> Answer {
    match method.as_str() {
        "GET" => {
            let found = app.ask(&caller, &ListUserKeys {}).await?;
            Ok(Json(found.keys.iter().map(shown).collect::<Vec<_>>()).into_response())
        }
        "POST" => {
            let NewKey { public_key, label } = v2::body(&bytes)?;
            let key = app.command(&caller, &AddUserKey { public_key, label }).await?;
            Ok((StatusCode::CREATED, Json(shown(&key))).into_response())
        }
        "DELETE" => {
            let OldKey { fingerprint } = v2::body(&bytes)?;
            app.command(&caller, &RemoveUserKey { sha256: fingerprint }).await?;
            Ok(Json(json!({ "message": "SSH key deleted." })).into_response())
        }
        _ => Err(Fail::not_found("Route")),
    }
}
