//! Listeners, and what the processes tell of themselves.

use super::Invalid;
use serde::{Deserialize, Serialize};

/// `[agents]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Path of `gantry-runner`; empty: beside `gantry`.
    pub binary: String,
    /// Address under which agents of this machine reach the services that they call, for example
    /// `http://127.0.0.1:8585` of a balancer before them; empty: a socket of this process.
    pub url: String,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address under which people and agents reach us, for example `https://ci.example.com`; empty: the listener's.
    pub public_url: String,
    /// Of `gantry serve`: where people and programs are served, by the role `api`.
    pub listen: String,
    /// Of `gantry serve`: where agents of other machines are served, by the roles that agents call.
    pub agents: String,
    /// Of `gantry serve`: probes, metrics and operators, of every process.
    pub internal: String,
    /// Of `gantry serve`: where other processes of the same service reach the listener for agents of this one, for example
    /// `http://10.0.3.7:8585`; empty: the listener's address, with the machine's name where it listens on all.
    pub peer_url: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            public_url: String::new(),
            listen: "127.0.0.1:8080".to_owned(),
            agents: "127.0.0.1:8585".to_owned(),
            internal: "127.0.0.1:0".to_owned(),
            peer_url: String::new(),
        }
    }
}

/// `[api]`: what one person may ask of it. Who asks more is answered 429 with `Retry-After`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Requests of one person per second; 0: no limit.
    pub requests_per_second: u32,
    /// Of those, at once.
    pub requests_burst: u32,
    /// Changes that one person asks for per second: triggers, reruns, cancels, settings; 0: no limit.
    pub changes_per_second: u32,
    /// Of those, at once.
    pub changes_burst: u32,
    /// Requests about one organisation per second, of everybody; 0: no limit.
    pub org_requests_per_second: u32,
    /// Of those, at once.
    pub org_requests_burst: u32,
    /// Live streams that are open at once, of everybody and each process.
    pub max_streams: usize,
    /// Of those, with one token, in all processes: a browser with its pages, or a program; 0: no limit.
    pub max_streams_of_session: usize,
}

impl Default for Api {
    fn default() -> Self {
        let api::Config { requests, changes, org_requests, max_streams, max_streams_of_session, .. } =
            api::Config::new("", "");
        Self {
            requests_per_second: requests.0,
            requests_burst: requests.1,
            changes_per_second: changes.0,
            changes_burst: changes.1,
            org_requests_per_second: org_requests.0,
            org_requests_burst: org_requests.1,
            max_streams,
            max_streams_of_session,
        }
    }
}

/// `[contexts]`: how fast secrets are given out. A job that comes too early waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// Deliveries to jobs of one organisation per second; 0: no limit. The counter `gantry.contexts.deliveries` says how
    /// many were held up, which is worth an alarm: nobody gets all secrets quickly.
    pub deliveries_per_second: u32,
    /// Of those, at once.
    pub deliveries_burst: u32,
    /// Whether a context takes no value that output cannot be masked of: fewer than 4 bytes, or a word such as `true`. Else
    /// whoever sets one is warned.
    pub refuse_unmaskable: bool,
}

impl Default for Contexts {
    fn default() -> Self {
        Self { deliveries_per_second: 50, deliveries_burst: 200, refuse_unmaskable: false }
    }
}

/// `[keys]`: what the installation signs with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// File with the signing key: 32 random bytes, or these as 64 hexadecimal digits (`openssl rand -hex 32`). All processes of
    /// an installation need the same one, or they refuse each other's messages. With several, a line each, the first one signs
    /// and all are believed, so that a key can be replaced while jobs run. Empty: `keys/signing` in the data folder, made
    /// where it is missing, which is right where all processes share that folder.
    pub signing: String,
}

/// `[tls]`: the public listener's certificate. With none of these, connections are in clear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Chain of certificates, PEM; also `--tls-cert`.
    pub cert: String,
    /// Its private key, PEM; also `--tls-key`.
    pub key: String,
    /// Make a certificate of our own in the data folder; also `--tls self-signed`.
    pub self_signed: bool,
}

/// `[telemetry]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look. `GANTRY_LOG` filters them, for example `debug,sqlx=warn`.
    pub log: LogLines,
    /// Where metrics are sent as statsd, for example `127.0.0.1:8125`; empty: nowhere.
    pub statsd: String,
    /// Who may read `/metrics`.
    pub metrics: MetricsFor,
    /// Where traces are sent, as OTLP over HTTP: the base address of a collector, for example `http://collector:4318`;
    /// empty: nowhere.
    pub otlp: String,
    /// Headers of these requests, `name=value,name=value`; `GANTRY_TELEMETRY_OTLP_HEADERS_FILE` keeps them out of this file.
    pub otlp_headers: String,
}

impl Telemetry {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.collector().map(drop)
    }

    /// The collector of traces, if there is one.
    ///
    /// # Errors
    /// Its address or headers cannot be used.
    pub fn collector(&self) -> Result<Option<spans_otlp::Target>, Invalid> {
        if self.otlp.is_empty() {
            return Ok(None);
        }
        let key = |refused: &spans_otlp::Refused| match refused {
            spans_otlp::Refused::Headers => "otlp_headers",
            spans_otlp::Refused::Address(_) | spans_otlp::Refused::Client(_) => "otlp",
        };
        let target = spans_otlp::Target::new(&self.otlp, &self.otlp_headers);
        target.map(Some).map_err(|refused| Invalid::new(format!("telemetry.{}: {refused}", key(&refused))))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLines {
    /// For people.
    #[default]
    Text,
    /// One JSON document per line.
    Json,
}

/// Who may read `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsFor {
    /// Programs on this machine, and whoever shows an administrator's token.
    #[default]
    Local,
    /// Whoever shows an administrator's token.
    Token,
    /// Everybody who reaches the listener.
    Everybody,
}
