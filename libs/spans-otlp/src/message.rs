//! Spans as OTLP messages.

use crate::Process;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Message, Status, span, status},
};
use spans::{Kind, Span, Value};
use std::collections::BTreeMap;

/// One request. A process may be several services: each is a resource of its own.
pub(crate) fn of(batch: &[Span], process: &Process) -> ExportTraceServiceRequest {
    let mut services: BTreeMap<&'static str, Vec<Message>> = BTreeMap::new();
    for span in batch {
        services.entry(span.service).or_default().push(one(span));
    }
    let resource_spans = services.into_iter().map(|(service, spans)| ResourceSpans {
        resource: Some(resource(service, process)),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope { name: "gantry".to_owned(), ..Default::default() }),
            spans,
            ..Default::default()
        }],
        ..Default::default()
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

fn resource(service: &str, process: &Process) -> Resource {
    let text = |key: &str, text: String| key_value(key, any_value::Value::StringValue(text));
    Resource {
        attributes: vec![
            text("service.namespace", "gantry".to_owned()),
            text("service.name", format!("gantry-{service}")),
            text("service.version", process.version.clone()),
            text("service.instance.id", process.instance.clone()),
        ],
        ..Default::default()
    }
}

fn one(span: &Span) -> Message {
    Message {
        trace_id: span.context.trace.to_be_bytes().to_vec(),
        span_id: span.context.span.to_be_bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        // Sampled; all others end here.
        flags: 1,
        name: span.name.as_str().to_owned(),
        kind: match span.kind {
            Kind::Internal => span::SpanKind::Internal,
            Kind::Server => span::SpanKind::Server,
            Kind::Producer => span::SpanKind::Producer,
            Kind::Consumer => span::SpanKind::Consumer,
        }
        .into(),
        start_time_unix_nano: nanos(span.began),
        end_time_unix_nano: nanos(span.ended),
        attributes: span.attributes.iter().map(|(key, value)| key_value(key, any(value))).collect(),
        links: span
            .links
            .iter()
            .map(|link| span::Link {
                trace_id: link.trace.to_be_bytes().to_vec(),
                span_id: link.span.to_be_bytes().to_vec(),
                ..Default::default()
            })
            .collect(),
        status: span.failed.then(|| Status { code: status::StatusCode::Error.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn any(value: &Value) -> any_value::Value {
    match value {
        Value::Number(number) => any_value::Value::IntValue(*number),
        Value::Flag(flag) => any_value::Value::BoolValue(*flag),
        Value::Id(_) | Value::Word(_) | Value::Name(_) => any_value::Value::StringValue(value.to_string()),
    }
}

fn nanos(at: ids::Timestamp) -> u64 {
    at.timestamp_nanos_opt().and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or_default()
}
