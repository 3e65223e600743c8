//! The few requests to Nomad's HTTP API that are needed.

use crate::config::{Config, Wrong};
use backon::{ExponentialBuilder, Retryable};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Reliability §11: what is asked inside a cluster connects within a second; a list may take longer to be made.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);
/// Nomad says something every 10 s on a stream of events.
const SILENCE: Duration = Duration::from_secs(30);
const REPEATS: usize = 2;
const PAUSE: Duration = Duration::from_millis(100);
/// Rows per answer of a list.
const PAGE: &str = "1000";
/// The names of placements begin so.
const PREFIX: &str = "task-";
/// Longest text of a refusal that is passed on, in characters.
const LONGEST: usize = 300;

/// A region and a namespace of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) region: String,
    pub(crate) namespace: String,
}

impl Place {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = self.region();
        query.push(("namespace", self.namespace.clone()));
        query
    }

    fn region(&self) -> Vec<(&'static str, String)> {
        if self.region.is_empty() { Vec::new() } else { vec![("region", self.region.clone())] }
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("Nomad at {0} cannot be reached: {1}")]
    Away(String, String),
    #[error("Nomad at {at} answered {status}: {why}")]
    Refused { at: String, status: StatusCode, why: String },
}

/// A job, as lists show it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct JobRow {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    status: String,
    stop: bool,
    /// Nanoseconds since 1970.
    pub(crate) submit_time: u64,
    job_summary: Option<JobSummary>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct JobSummary {
    summary: Option<BTreeMap<String, Counts>>,
}

/// Allocations by what became of them.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Counts {
    queued: u32,
    complete: u32,
    failed: u32,
    running: u32,
    starting: u32,
    lost: u32,
    unknown: u32,
}

impl JobRow {
    fn counts(&self) -> Counts {
        let groups = self.job_summary.iter().filter_map(|summary| summary.summary.as_ref());
        groups.flat_map(BTreeMap::values).next().copied().unwrap_or_default()
    }

    /// A machine that cannot be reached may run it.
    pub(crate) fn runs(&self) -> bool {
        let Counts { running, starting, unknown, .. } = self.counts();
        !self.stop && running + starting + unknown > 0
    }

    pub(crate) fn has_ended(&self) -> bool {
        let Counts { queued, complete, failed, lost, .. } = self.counts();
        let over = queued == 0 && !self.runs() && complete + failed + lost > 0;
        self.stop || self.status == "dead" || over
    }

    pub(crate) fn is_unplaced(&self) -> bool {
        !self.has_ended() && !self.runs()
    }
}

/// An evaluation that found no machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Blocked {
    #[serde(rename = "JobID")]
    pub(crate) job_id: String,
    #[serde(rename = "FailedTGAllocs")]
    pub(crate) failed: Option<BTreeMap<String, Metric>>,
    pub(crate) quota_limit_reached: String,
}

/// What a look for a machine found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Metric {
    pub(crate) nodes_evaluated: u32,
    pub(crate) nodes_in_pool: u32,
    pub(crate) nodes_available: Option<BTreeMap<String, u32>>,
    pub(crate) constraint_filtered: Option<BTreeMap<String, u32>>,
    pub(crate) dimension_exhausted: Option<BTreeMap<String, u32>>,
    pub(crate) quota_exhausted: Option<Vec<String>>,
    pub(crate) resources_exhausted: Option<BTreeMap<String, Asked>>,
}

/// What was asked of a machine.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Asked {
    #[serde(rename = "CPU")]
    pub(crate) cpu: u64,
    #[serde(rename = "MemoryMB")]
    pub(crate) memory: u64,
}

/// A client for one cluster.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    base: Url,
    token: String,
}

impl Api {
    pub(crate) fn new(config: &Config) -> Result<Self, Wrong> {
        let wrong = || {
            Wrong(format!(
                "compute.address {:?} is not the address of a Nomad: write it as https://nomad.example.com:4646",
                config.address
            ))
        };
        let mut base: Url = config.address.parse().map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong());
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut builder = Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE);
        if let Some(file) = &config.ca {
            let all = Certificate::from_pem_bundle(&read("ca", file)?)
                .map_err(|error| Wrong(format!("compute.ca {} is no PEM: {error}", file.display())))?;
            builder = builder.tls_certs_only(all);
        }
        if let Some((cert, key)) = &config.identity {
            let mut pem = read("key", key)?;
            pem.push(b'\n');
            pem.extend(read("cert", cert)?);
            let identity = reqwest::Identity::from_pem(&pem).map_err(|error| {
                Wrong(format!("compute.cert and compute.key are no certificate: {error}"))
            })?;
            builder = builder.identity(identity);
        }
        let client =
            builder.build().map_err(|error| Wrong(format!("there can be no HTTP client: {error}")))?;
        Ok(Self { client, base, token: config.token.clone() })
    }

    fn at(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    fn away(&self, error: &reqwest::Error) -> Failure {
        let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
        // Not with the whole URL: the address says enough.
        let text = causes.fold(String::new(), |text, cause| {
            if text.is_empty() { cause.to_string() } else { format!("{text}: {cause}") }
        });
        Failure::Away(self.at(), if text.is_empty() { error.to_string() } else { text })
    }

    fn url(&self, segments: &[&str], query: &[(&'static str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url.query_pairs_mut().extend_pairs(query);
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.unbounded(method, url).timeout(ANSWER)
    }

    /// A request whose answer may go on for ever.
    fn unbounded(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        if self.token.is_empty() { request } else { request.header("x-nomad-token", &self.token) }
    }

    async fn judged(&self, sent: Result<Response, reqwest::Error>) -> Result<Response, Failure> {
        let response = sent.map_err(|error| self.away(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let why = response.text().await.unwrap_or_default();
        let why: String =
            why.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect();
        let why = if why.is_empty() { "no reason given".to_owned() } else { why };
        Err(Failure::Refused { at: self.at(), status, why })
    }

    /// Sends a request that may be repeated, again where Nomad was not there.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(REPEATS);
        let once = || async {
            let again = request
                .try_clone()
                .ok_or_else(|| Failure::Away(self.at(), "the request cannot be sent twice".to_owned()))?;
            self.judged(again.send().await).await
        };
        once.retry(pauses).when(|failure| matches!(failure, Failure::Away(..))).await
    }

    async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, Failure> {
        self.send(self.request(Method::GET, url)).await?.json().await.map_err(|error| self.away(&error))
    }

    /// All pages of a list.
    async fn pages<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        mut query: Vec<(&'static str, String)>,
    ) -> Result<Vec<T>, Failure> {
        query.push(("per_page", PAGE.to_owned()));
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let mut query = query.clone();
            if !next.is_empty() {
                query.push(("next_token", next));
            }
            let answer = self.send(self.request(Method::GET, self.url(segments, &query))).await?;
            let token = answer.headers().get("x-nomad-nexttoken").and_then(|value| value.to_str().ok());
            next = token.unwrap_or_default().to_owned();
            all.extend(answer.json::<Vec<T>>().await.map_err(|error| self.away(&error))?);
            if next.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Registers a job unless there is one of its id, also one that has ended.
    pub(crate) async fn register(&self, place: &Place, job: &Value) -> Result<(), Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Register<'a> {
            job: &'a Value,
            enforce_index: bool,
            job_modify_index: u64,
        }
        let body = Register { job, enforce_index: true, job_modify_index: 0 };
        let url = self.url(&["v1", "jobs"], &place.query());
        match self.send(self.request(Method::POST, url).json(&body)).await {
            Err(Failure::Refused { why, .. }) if why.contains("job already exists") => Ok(()),
            result => result.map(drop),
        }
    }

    /// Has a job's processes ended; one that is not known is no error.
    pub(crate) async fn deregister(&self, place: &Place, id: &str, forget: bool) -> Result<(), Failure> {
        let mut query = place.query();
        query.push(("purge", forget.to_string()));
        let url = self.url(&["v1", "job", id], &query);
        match self.send(self.request(Method::DELETE, url)).await {
            Err(Failure::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            // Another scheduler was faster.
            Err(Failure::Refused { why, .. }) if why.contains("job not found") => Ok(()),
            result => result.map(drop),
        }
    }

    pub(crate) async fn jobs(&self, place: &Place) -> Result<Vec<JobRow>, Failure> {
        let mut query = place.query();
        query.push(("prefix", PREFIX.to_owned()));
        self.pages(&["v1", "jobs"], query).await
    }

    pub(crate) async fn blocked(&self, place: &Place) -> Result<Vec<Blocked>, Failure> {
        let mut query = place.query();
        query.push(("status", "blocked".to_owned()));
        self.pages(&["v1", "evaluations"], query).await
    }

    /// The public keys of a region, as a JWK set.
    pub(crate) async fn keys(&self, place: &Place) -> Result<jsonwebtoken::jwk::JwkSet, Failure> {
        self.get(self.url(&[".well-known", "jwks.json"], &place.region())).await
    }

    /// Opens the stream of a place's events, a JSON document per line.
    pub(crate) async fn events(&self, place: &Place) -> Result<Response, Failure> {
        let mut query = place.query();
        query.extend([("topic", "Allocation".to_owned()), ("topic", "Evaluation".to_owned())]);
        let request = self.unbounded(Method::GET, self.url(&["v1", "event", "stream"], &query));
        self.judged(request.send().await).await
    }
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>, Wrong> {
    std::fs::read(file)
        .map_err(|error| Wrong(format!("compute.{key} {} cannot be read: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(status: &str, stop: bool, counts: Value) -> JobRow {
        let text = json!({
            "ID": "task-x-1", "Status": status, "Stop": stop, "SubmitTime": 1,
            "JobSummary": { "Summary": { "agent": counts } },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_job_waits_runs_or_has_ended() {
        let phase = |row: &JobRow| (row.is_unplaced(), row.runs(), row.has_ended());
        let (waits, runs, ended) = ((true, false, false), (false, true, false), (false, false, true));
        assert_eq!(phase(&row("pending", false, json!({ "Queued": 1 }))), waits);
        assert_eq!(phase(&row("pending", false, json!({}))), waits, "it was not looked at yet");
        assert_eq!(phase(&row("pending", false, json!({ "Starting": 1 }))), runs);
        assert_eq!(phase(&row("running", false, json!({ "Unknown": 1 }))), runs, "its machine is away");
        assert_eq!(phase(&row("running", false, json!({ "Complete": 1, "Running": 1 }))), runs, "drained");
        assert_eq!(phase(&row("running", false, json!({ "Lost": 1 }))), ended);
        assert_eq!(phase(&row("dead", false, json!({ "Failed": 1 }))), ended);
        assert_eq!(phase(&row("running", true, json!({ "Running": 1 }))), ended, "it was told to");
        assert_eq!(phase(&serde_json::from_value(json!({ "ID": "task-x-1" })).unwrap()), waits);
    }
}
