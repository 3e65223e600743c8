//! A statsd server and a collector of traces in one, for tests and for looking: what arrives is written to files.
//!
//! `telemetry-sink FOLDER STATSD OTLP` takes lines at `udp://STATSD` into `FOLDER/statsd.log`, and OTLP over HTTP at
//! `http://OTLP/v1/traces` into `FOLDER/traces.jsonl`, a request a line. A file that has grown too large becomes
//! `….1`, and a new one begins.

use anyhow::{Context, bail};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    routing::{get, post},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use std::{
    env, fs,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::{TcpListener, UdpSocket};

/// A stack may run for days.
const LARGEST: u64 = 64 << 20;

/// A file of lines.
struct Lines {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Lines {
    fn open(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > LARGEST {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        // In one call: a reader never sees half a line.
        let mut whole = line.to_vec();
        if !whole.ends_with(b"\n") {
            whole.push(b'\n');
        }
        self.file.write_all(&whole)?;
        self.size += whole.len() as u64;
        Ok(())
    }
}

type Shared = Arc<Mutex<Lines>>;

async fn traces(State(lines): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let request = match kind.split(';').next().unwrap_or_default().trim() {
        "application/x-protobuf" => ExportTraceServiceRequest::decode(body).ok(),
        "application/json" => serde_json::from_slice::<ExportTraceServiceRequest>(&body).ok(),
        _ => return StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    let Some(request) = request else { return StatusCode::BAD_REQUEST };
    let written = serde_json::to_vec(&request).map_err(io::Error::from).and_then(|line| {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.write(&line)
    });
    match written {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            eprintln!("telemetry-sink: traces cannot be written: {error}");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, statsd, otlp] = &arguments[..] else { bail!("usage: telemetry-sink FOLDER STATSD OTLP") };
    let folder = Path::new(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut metrics = Lines::open(folder, "statsd.log")?;
    let spans = Arc::new(Mutex::new(Lines::open(folder, "traces.jsonl")?));
    let udp = UdpSocket::bind(statsd).await.with_context(|| format!("udp {statsd}"))?;
    let tcp = TcpListener::bind(otlp).await.with_context(|| format!("tcp {otlp}"))?;
    let routes = Router::new()
        .route("/v1/traces", post(traces))
        .route("/", get(|| async { "telemetry-sink" }))
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(spans);
    let served = async { axum::serve(tcp, routes).await.context("traces") };
    let received = async {
        let mut packet = vec![0; 65_536];
        loop {
            let length = udp.recv(&mut packet).await.context("metrics")?;
            metrics.write(&packet[..length]).context("metrics cannot be written")?;
        }
    };
    tokio::select! { ended = served => ended, ended = received => ended }
}
