//! A registry: this server's, or another one that speaks the same GraphQL.

use crate::{Client, Exit, Failure};
use serde_json::{Value, json};

/// Speaks to a registry.
pub(in crate::commands) enum Registry {
    /// The server of the flags.
    Ours(Client),
    /// Another one.
    Other { http: reqwest::Client, url: String, token: Option<String> },
}

impl Registry {
    pub fn of(client: Client) -> Self {
        Self::Ours(client)
    }

    /// The registry of another server; public orbs need no token.
    pub fn at(server: &str, token: Option<String>) -> Self {
        let url = format!("{}/graphql-unstable", server.trim_end_matches('/'));
        Self::Other { http: reqwest::Client::new(), url, token }
    }

    /// The data of a query.
    async fn query(&self, query: &str, variables: Value) -> Result<Value, Failure> {
        let body = json!({ "query": query, "variables": variables });
        let mut answer = match self {
            Self::Ours(client) => client.post("/graphql-unstable", &body).await?,
            Self::Other { http, url, token } => {
                let mut request = http.post(url).json(&body);
                if let Some(token) = token {
                    request = request.header("Authorization", token);
                }
                let failed =
                    |error: reqwest::Error| Failure::new(Exit::Connection, format!("{url}: {error}"));
                let response = request.send().await.map_err(failed)?;
                let status = response.status().as_u16();
                if !response.status().is_success() {
                    return Err(Failure::new(Exit::of_http(status), format!("{url} answered {status}")));
                }
                response.json().await.map_err(failed)?
            }
        };
        if let Some(message) = answer.pointer("/errors/0/message").and_then(Value::as_str) {
            return Err(Failure::new(Exit::Server, message));
        }
        Ok(answer.get_mut("data").map(Value::take).unwrap_or_default())
    }

    /// The payload of a mutation, if it has no errors.
    async fn change(&self, field: &str, query: &str, variables: Value) -> Result<Value, Failure> {
        let mut data = self.query(query, variables).await?;
        let payload = data.get_mut(field).map(Value::take).unwrap_or_default();
        let Some(error) = payload.pointer("/errors/0") else { return Ok(payload) };
        let exit = match error.get("type").and_then(Value::as_str) {
            Some("NOT_FOUND") => Exit::NotFound,
            Some("FORBIDDEN") => Exit::Forbidden,
            Some("EXISTS") => Exit::Conflict,
            _ => Exit::Invalid,
        };
        Err(Failure::new(exit, error.get("message").and_then(Value::as_str).unwrap_or("refused")))
    }

    /// All orbs, or those of a namespace, each with its highest version.
    pub async fn orbs(&self, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
        const NODES: &str = "{ edges { cursor node { name createdAt isPrivate versions(count: 1) { version } } } \
                             pageInfo { hasNextPage } }";
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let (query, place) = match namespace {
                Some(_) => (
                    format!(
                        "query($namespace: String, $after: String!) {{ registryNamespace(name: $namespace) {{ orbs(first: 20, after: $after) {NODES} }} }}"
                    ),
                    "/registryNamespace/orbs",
                ),
                None => (
                    format!(
                        "query($after: String!) {{ orbs(first: 20, after: $after, certifiedOnly: false) {NODES} }}"
                    ),
                    "/orbs",
                ),
            };
            let data = self.query(&query, json!({ "namespace": namespace, "after": after })).await?;
            let page = data.pointer(place).ok_or_else(|| {
                Failure::new(
                    Exit::NotFound,
                    format!("there is no namespace {}", namespace.unwrap_or_default()),
                )
            })?;
            for edge in page.get("edges").and_then(Value::as_array).into_iter().flatten() {
                after = edge.get("cursor").and_then(Value::as_str).unwrap_or_default().to_owned();
                let mut node = edge.get("node").cloned().unwrap_or_default();
                node["version"] = node.pointer("/versions/0/version").cloned().unwrap_or_default();
                found.push(node);
            }
            if page.pointer("/pageInfo/hasNextPage") != Some(&Value::Bool(true)) {
                return Ok(found);
            }
        }
    }

    /// A version with its source.
    pub async fn version(&self, reference: &str) -> Result<Value, Failure> {
        let whole =
            if reference.contains('@') { reference.to_owned() } else { format!("{reference}@volatile") };
        let query = "query($orbVersionRef: String!) { orbVersion(orbVersionRef: $orbVersionRef) { \
                     id version source createdAt orb { id name createdAt versions(count: 200) { version createdAt } } } }";
        let mut data = self.query(query, json!({ "orbVersionRef": whole })).await?;
        match data.get_mut("orbVersion").map(Value::take) {
            None | Some(Value::Null) => {
                Err(Failure::new(Exit::NotFound, format!("there is no orb {reference}")))
            }
            Some(found) => Ok(found),
        }
    }

    /// What is wrong with a source.
    pub async fn validate(&self, source: &str) -> Result<Vec<String>, Failure> {
        let query = "query($config: String!) { orbConfig(orbYaml: $config) { valid errors { message } } }";
        let data = self.query(query, json!({ "config": source })).await?;
        let errors = data.pointer("/orbConfig/errors").and_then(Value::as_array);
        let message = |error: &Value| error.get("message")?.as_str().map(str::to_owned);
        Ok(errors.into_iter().flatten().filter_map(message).collect())
    }

    /// Publishes a version; the answer is its number.
    pub async fn publish(&self, name: &str, version: &str, source: &str) -> Result<String, Failure> {
        let (namespace, orb) = name.split_once('/').unwrap_or_default();
        let query = "mutation($config: String!, $orbName: String, $namespaceName: String, $version: String!) { \
                     publishOrb(orbName: $orbName, namespaceName: $namespaceName, orbYaml: $config, version: $version) \
                     { orb { version } errors { message type } } }";
        let variables =
            json!({ "config": source, "orbName": orb, "namespaceName": namespace, "version": version });
        let made = self.change("publishOrb", query, variables).await?;
        Ok(made.pointer("/orb/version").and_then(Value::as_str).unwrap_or(version).to_owned())
    }

    /// Publishes what a dev version holds; the answer is its number.
    pub async fn promote(&self, name: &str, from: &str, to: &str) -> Result<String, Failure> {
        let (namespace, orb) = name.split_once('/').unwrap_or_default();
        let query = "mutation($orbName: String, $namespaceName: String, $from: String!, $to: String!) { \
                     promoteOrb(orbName: $orbName, namespaceName: $namespaceName, devVersion: $from, \
                     semanticVersion: $to) { orb { version } errors { message type } } }";
        let variables = json!({ "orbName": orb, "namespaceName": namespace, "from": from, "to": to });
        let made = self.change("promoteOrb", query, variables).await?;
        Ok(made.pointer("/orb/version").and_then(Value::as_str).unwrap_or(to).to_owned())
    }

    /// Makes the namespace and the orb where they do not exist.
    pub async fn ensure(&self, name: &str, org: &str, private: bool) -> Result<(), Failure> {
        let (namespace, orb) = name
            .split_once('/')
            .ok_or_else(|| Failure::new(Exit::Usage, format!("{name} is not namespace/orb")))?;
        let query = "query($name: String!, $namespace: String) { orb(name: $name) { id } \
                     registryNamespace(name: $namespace) { id } }";
        let held = self.query(query, json!({ "name": name, "namespace": namespace })).await?;
        if held.pointer("/orb/id").is_some() {
            return Ok(());
        }
        let namespace_id = match held.pointer("/registryNamespace/id").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => self.take(namespace, org).await?,
        };
        let query = "mutation($name: String!, $registryNamespaceId: UUID!, $isPrivate: Boolean!) { \
                     createOrb(name: $name, registryNamespaceId: $registryNamespaceId, isPrivate: $isPrivate) \
                     { orb { id } errors { message type } } }";
        let variables = json!({ "name": orb, "registryNamespaceId": namespace_id, "isPrivate": private });
        self.change("createOrb", query, variables).await.map(|_| ())
    }

    async fn take(&self, namespace: &str, org: &str) -> Result<String, Failure> {
        let query = "query($name: String) { organization(name: $name) { id } }";
        let found = self.query(query, json!({ "name": org })).await?;
        let id = found
            .pointer("/organization/id")
            .ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no organisation {org}")))?;
        let query = "mutation($name: String!, $organizationId: UUID!) { \
                     createNamespace(name: $name, organizationId: $organizationId) \
                     { namespace { id } errors { message type } } }";
        let made =
            self.change("createNamespace", query, json!({ "name": namespace, "organizationId": id })).await?;
        Ok(made.pointer("/namespace/id").and_then(Value::as_str).unwrap_or_default().to_owned())
    }
}
