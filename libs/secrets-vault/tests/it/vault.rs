//! What an operator does in Vault, with the policies that ship.

use gantry_secrets_vault::{AppRole, Config, DELIVER_POLICY, ROTATE_POLICY, VaultSecrets, WRITE_POLICY};
use reqwest::{Client, Method};
use serde_json::{Value, json};

/// Vault, as its administrator.
pub struct Admin {
    pub address: String,
    pub token: String,
    client: Client,
}

impl Admin {
    pub fn new(address: &str, token: &str) -> Self {
        // Fails only when one is installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self { address: address.to_owned(), token: token.to_owned(), client: Client::new() }
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.answer(method, path, &body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    pub async fn answer(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/v1/{path}", self.address);
        let request = self.client.request(method, url).header("x-vault-token", &self.token).json(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, body).await
    }

    /// The engine, a key of this name and the policies for it. The shipped ones are for the key `gantry`.
    pub async fn prepare(&self, key: &str) {
        let (status, answer) =
            self.answer(Method::POST, "sys/mounts/transit", &json!({"type": "transit"})).await;
        assert!(status == 204 || answer.to_string().contains("already in use"), "{status} {answer}");
        let (status, answer) =
            self.answer(Method::POST, "sys/auth/approle", &json!({"type": "approle"})).await;
        assert!(status == 204 || answer.to_string().contains("already in use"), "{status} {answer}");
        self.post(&format!("transit/keys/{key}"), json!({"derived": true})).await;
        for (name, policy) in
            [("write", WRITE_POLICY), ("deliver", DELIVER_POLICY), ("rotate", ROTATE_POLICY)]
        {
            let policy = policy.replace("/gantry", &format!("/{key}"));
            self.post(&format!("sys/policies/acl/{key}-{name}"), json!({ "policy": policy })).await;
        }
    }

    /// A role with these policies of a key.
    pub async fn role(&self, key: &str, policies: &[&str], more: Value) -> AppRole {
        let name = format!("{key}-{}", policies.join("-"));
        let policies: Vec<String> = policies.iter().map(|policy| format!("{key}-{policy}")).collect();
        let mut body = json!({ "token_policies": policies });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post(&format!("auth/approle/role/{name}"), body).await;
        let path = format!("auth/approle/role/{name}");
        let id = self.call(Method::GET, &format!("{path}/role-id"), Value::Null).await;
        let secret = self.post(&format!("{path}/secret-id"), json!({})).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        AppRole {
            role_id: text(&id["data"]["role_id"]),
            secret_id: text(&secret["data"]["secret_id"]).into(),
        }
    }

    /// The adapter as a process that writes and delivers has it.
    pub async fn both(&self, key: &str, more: Value) -> VaultSecrets {
        self.prepare(key).await;
        let write = self.role(key, &["write", "rotate"], more.clone()).await;
        let deliver = Some(self.role(key, &["deliver"], more).await);
        self.adapter(key, write, deliver)
    }

    pub fn adapter(&self, key: &str, write: AppRole, deliver: Option<AppRole>) -> VaultSecrets {
        let (address, mount, key) = (self.address.clone(), "transit".to_owned(), key.to_owned());
        VaultSecrets::new(Config { address, mount, key, write, deliver }).unwrap()
    }
}
