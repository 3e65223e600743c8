//! Against a collector that reads what it gets, refuses, or is not there.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use contracts::trace::Trace;
use gantry_spans_otlp::{self as spans_otlp, Exporter, Flush, Process, QUEUE, Refused, Target};
use ids::MessageId;
use metrics_exporter_prometheus::PrometheusBuilder;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
};
use prost::Message;
use spans::{Kind, Name, Recorder, Span};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};

/// Nobody records: the tests hand spans to the exporter themselves.
struct Nobody;

impl Recorder for Nobody {
    fn record(&self, _: Span) {}
}

fn span(service: &'static str, name: impl Into<Name>, parent: Option<Trace>) -> Span {
    spans::install(Nobody);
    Span::begin(parent, service, Kind::Internal, name).expect("somebody records")
}

type Got = (HeaderMap, ExportTraceServiceRequest);

#[derive(Clone)]
struct Collector {
    got: mpsc::UnboundedSender<Got>,
    /// Answers before the one that is good.
    answers: Arc<Mutex<Vec<StatusCode>>>,
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if let Some(status) = collector.answers.lock().await.pop() {
        return status;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    collector.got.send((headers, request)).unwrap();
    StatusCode::OK
}

async fn collector(answers: Vec<StatusCode>) -> (String, mpsc::UnboundedReceiver<Got>) {
    let (got, receive) = mpsc::unbounded_channel();
    let state = Collector { got, answers: Arc::new(Mutex::new(answers)) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/base/", listener.local_addr().unwrap());
    let routes = Router::new().route("/base/v1/traces", post(take)).with_state(state);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, receive)
}

fn start(url: &str) -> (Exporter, Flush) {
    let target = Target::new(url, "authorization=Bearer abc, x-scope = one").unwrap();
    spans_otlp::start(target, Process { version: "1.2.3".into(), instance: "here".into() })
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let found = attributes.iter().find(|found| found.key == key).unwrap_or_else(|| panic!("{key} is said"));
    match found.value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

#[tokio::test]
async fn spans_of_several_services_arrive_with_their_ids_and_what_they_say() {
    let (url, mut got) = collector(vec![StatusCode::SERVICE_UNAVAILABLE]).await;
    let (exporter, _flush) = start(&url);
    let root = span("api", "POST /x", None);
    let job = ids::JobId::new().uuid();
    let below = span("conductor", Name::of("job", "build"), Some(root.context))
        .with("gantry.job.id", job)
        .with("gantry.bytes", 7_i64)
        .with("gantry.state", "success")
        .linked(Some(Trace::root(MessageId::new())))
        .failing(true)
        .ending();
    let (root_context, below_context, link) = (root.context, below.context, below.links[0]);
    exporter.record(below);
    exporter.record(root.ending());
    let (headers, request) = got.recv().await.unwrap();
    assert_eq!(headers["authorization"], "Bearer abc");
    assert_eq!(headers["x-scope"], "one");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let [api, conductor] = &request.resource_spans[..] else { panic!("two services: {request:?}") };
    let resource = &api.resource.as_ref().unwrap().attributes;
    assert_eq!(text(resource, "service.name"), "gantry-api");
    assert_eq!(text(resource, "service.version"), "1.2.3");
    let (root, below) = (&api.scope_spans[0].spans[0], &conductor.scope_spans[0].spans[0]);
    assert_eq!(root.trace_id, root_context.trace.to_be_bytes());
    assert!(root.parent_span_id.is_empty());
    assert_eq!(below.trace_id, root.trace_id);
    assert_eq!(below.parent_span_id, root.span_id);
    assert_eq!(below.span_id, below_context.span.to_be_bytes());
    assert_eq!(below.name, "job build");
    assert_eq!(text(&below.attributes, "gantry.job.id"), job.to_string());
    assert_eq!(text(&below.attributes, "gantry.state"), "success");
    assert_eq!(below.links[0].trace_id, link.trace.to_be_bytes());
    assert_eq!(below.status.as_ref().unwrap().code, 2);
    assert!(below.end_time_unix_nano >= below.start_time_unix_nano && below.start_time_unix_nano > 0);
}

#[tokio::test]
async fn what_is_left_is_sent_at_the_end() {
    let (url, mut got) = collector(Vec::new()).await;
    let (exporter, flush) = start(&url);
    for _ in 0..1300 {
        exporter.record(span("api", "x", None));
    }
    flush.within(Duration::from_secs(30)).await;
    let mut many = 0;
    while let Ok((_, request)) = got.try_recv() {
        many += request.resource_spans[0].scope_spans[0].spans.len();
    }
    assert_eq!(many, 1300);
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nobody_up_and_what_has_no_room_is_dropped_and_counted() {
    // It accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (exporter, flush) = start(&format!("http://{}", silent.local_addr().unwrap()));
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for _ in 0..3 * QUEUE {
            exporter.record(span("api", "x", None));
        }
    });
    let counted = format!("gantry_telemetry_spans{{outcome=\"no_room\"}} {}", 2 * QUEUE);
    let said = recorder.handle().render();
    assert!(said.contains(&counted), "{said}");
    flush.within(Duration::from_millis(10)).await;
}

#[tokio::test]
async fn what_the_collector_refuses_for_good_is_not_sent_again() {
    let (url, mut got) = collector(vec![StatusCode::BAD_REQUEST]).await;
    let (exporter, flush) = start(&url);
    exporter.record(span("api", "x", None));
    flush.within(Duration::from_secs(30)).await;
    assert!(got.try_recv().is_err(), "a second request would have been taken");
}

#[test]
fn an_address_or_headers_that_cannot_be_used_are_refused_without_showing_a_secret() {
    for bad in ["", "collector:4318", "ftp://collector", "http://user:pass@collector", "http://c/?token=x"] {
        assert!(matches!(Target::new(bad, ""), Err(Refused::Address(_))), "{bad}");
    }
    for bad in ["secret", "a b=secret", "a=sec\nret"] {
        let error = Target::new("https://collector", bad).unwrap_err();
        assert!(matches!(error, Refused::Headers) && !error.to_string().contains("sec"), "{bad}: {error}");
    }
}
