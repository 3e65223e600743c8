//! The operations of the transit engine.

use crate::{
    Config,
    http::{Failure, Http},
    login::Login,
};
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use reqwest::{Method, StatusCode};
use secrets::Zeroizing;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;

/// What the engine says of the key.
#[derive(Deserialize)]
pub(crate) struct Key {
    pub(crate) latest_version: u32,
    min_decryption_version: u32,
    min_available_version: u32,
    pub(crate) derived: bool,
}

impl Key {
    /// Whether ciphertexts of this version can be opened.
    pub(crate) fn has(&self, version: u32) -> bool {
        (self.min_decryption_version.max(self.min_available_version)..=self.latest_version).contains(&version)
    }
}

#[derive(Debug)]
pub(crate) struct Transit {
    http: Http,
    mount: String,
    key: String,
}

impl Transit {
    pub(crate) fn new(config: &Config) -> io::Result<Self> {
        let mount = config.mount.trim_matches('/').to_owned();
        Ok(Self { http: Http::new(&config.address)?, mount, key: config.key.clone() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.key
    }

    pub(crate) fn path(&self, operation: &str) -> String {
        format!("{}/{operation}/{}", self.mount, self.key)
    }

    async fn write(&self, login: &Login, path: &str, body: &Value) -> Result<Value, Failure> {
        login.call(&self.http, Method::POST, path, body).await
    }

    pub(crate) async fn key(&self, login: &Login) -> io::Result<Key> {
        let path = self.path("keys");
        let mut answer = match login.call(&self.http, Method::GET, &path, &Value::Null).await {
            Err(failure) if failure.status() == Some(StatusCode::NOT_FOUND) => {
                let text =
                    format!("Vault has no key {path}: make it with `vault write -f {path} derived=true`");
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
            other => other?,
        };
        serde_json::from_value(answer["data"].take()).map_err(io::Error::other)
    }

    pub(crate) async fn encrypt(&self, login: &Login, label: &str, plain: &[u8]) -> io::Result<String> {
        let plain = Zeroizing::new(B64.encode(plain));
        let body = json!({ "plaintext": *plain, "context": B64.encode(label) });
        text(self.write(login, &self.path("encrypt"), &body).await?, "ciphertext")
    }

    /// `None`: Vault does not open it.
    pub(crate) async fn decrypt(
        &self,
        login: &Login,
        label: &str,
        sealed: &str,
    ) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let body = json!({ "ciphertext": sealed, "context": B64.encode(label) });
        let Some(mut answer) = opened(self.write(login, &self.path("decrypt"), &body).await)? else {
            return Ok(None);
        };
        plain(&mut answer["data"]).map(Some)
    }

    /// The same for several, in one request. `None`: Vault does not open one of them, and does not say which.
    pub(crate) async fn decrypt_all(
        &self,
        login: &Login,
        sealed: &[(&str, String)],
    ) -> io::Result<Option<Vec<Zeroizing<Vec<u8>>>>> {
        let one =
            |(label, sealed): &(&str, String)| json!({ "ciphertext": sealed, "context": B64.encode(label) });
        let body = json!({ "batch_input": sealed.iter().map(one).collect::<Vec<_>>() });
        let Some(mut answer) = opened(self.write(login, &self.path("decrypt"), &body).await)? else {
            return Ok(None);
        };
        let Value::Array(results) = answer["data"]["batch_results"].take() else {
            return Err(io::Error::other("Vault's answer has no batch_results"));
        };
        if results.len() != sealed.len() {
            return Err(io::Error::other("Vault's answer has another number of values"));
        }
        results.into_iter().map(|mut one| plain(&mut one)).collect::<io::Result<_>>().map(Some)
    }

    /// `None`: Vault does not open it.
    pub(crate) async fn rewrap(
        &self,
        login: &Login,
        label: &str,
        sealed: &str,
    ) -> io::Result<Option<String>> {
        let body = json!({ "ciphertext": sealed, "context": B64.encode(label) });
        let answer = opened(self.write(login, &self.path("rewrap"), &body).await)?;
        answer.map(|answer| text(answer, "ciphertext")).transpose()
    }

    pub(crate) async fn rotate(&self, login: &Login) -> io::Result<()> {
        self.write(login, &format!("{}/rotate", self.path("keys")), &json!({})).await?;
        Ok(())
    }

    /// Vault destroys a version only if nothing is sealed or opened with it any more.
    pub(crate) async fn retire_below(&self, login: &Login, version: u32) -> io::Result<()> {
        let (key, path) = (self.key(login).await?, self.path("keys"));
        let version = version.min(key.latest_version);
        if version <= key.min_available_version.max(1) {
            return Ok(());
        }
        let least = json!({ "min_decryption_version": version, "min_encryption_version": version });
        self.write(login, &format!("{path}/config"), &least).await?;
        self.write(login, &format!("{path}/trim"), &json!({ "min_available_version": version })).await?;
        Ok(())
    }
}

/// A ciphertext that does not open is a bad request to Vault.
fn opened(answer: Result<Value, Failure>) -> io::Result<Option<Value>> {
    match answer {
        Err(failure) if failure.status() == Some(StatusCode::BAD_REQUEST) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn text(mut answer: Value, name: &str) -> io::Result<String> {
    field(&mut answer["data"], name)
}

fn field(data: &mut Value, name: &str) -> io::Result<String> {
    match data[name].take() {
        Value::String(text) => Ok(text),
        _ => Err(io::Error::other(format!("Vault's answer has no {name}"))),
    }
}

/// The value that an answer holds.
fn plain(data: &mut Value) -> io::Result<Zeroizing<Vec<u8>>> {
    let plain = Zeroizing::new(field(data, "plaintext")?);
    B64.decode(plain.as_bytes()).map(Zeroizing::new).map_err(io::Error::other)
}
