//! How a record lies in the collection.

use crate::odd;
use chrono::DateTime;
use mongodb::bson::{Binary, Bson, Document as Bsons, RawDocumentBuf, doc, spec::BinarySubtype};
use records::{Document, NewDocument, Result};
use serde_json::Value;
use uuid::Uuid;

/// Name of a record.
pub(crate) fn identity(kind: &str, id: Uuid) -> String {
    format!("{kind}/{id}")
}

/// Bytes sort as the ids do.
pub(crate) fn id(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

/// What is set; the time is the server's.
pub(crate) fn fields(document: &NewDocument) -> Bsons {
    doc! {
        "kind": document.kind,
        "id": id(document.id),
        "group": id(document.group),
        "version": document.version,
        "body": bson(&document.body),
    }
}

/// Not by way of the library's serialisation, neither here nor where documents are read: that reads what looks like extended JSON (`{"$date": …}`) as what it means.
fn bson(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(value) => match value.as_i64() {
            Some(value) => Bson::Int64(value),
            None => Bson::Double(value.as_f64().unwrap_or_default()),
        },
        Value::String(value) => Bson::String(value.clone()),
        Value::Array(values) => Bson::Array(values.iter().map(bson).collect()),
        Value::Object(fields) => {
            Bson::Document(fields.iter().map(|(name, value)| (name.clone(), bson(value))).collect())
        }
    }
}

fn json(value: Bson) -> Result<Value> {
    Ok(match value {
        Bson::Null => Value::Null,
        Bson::Boolean(value) => value.into(),
        Bson::Int32(value) => value.into(),
        Bson::Int64(value) => value.into(),
        Bson::Double(value) => value.into(),
        Bson::String(value) => value.into(),
        Bson::Array(values) => Value::Array(values.into_iter().map(json).collect::<Result<_>>()?),
        Bson::Document(fields) => {
            let fields = fields.into_iter().map(|(name, value)| Ok((name, json(value)?)));
            Value::Object(fields.collect::<Result<_>>()?)
        }
        other => return Err(odd(format!("a record's body has a {:?}", other.element_type()))),
    })
}

/// A record as it was stored.
pub(crate) fn of(stored: &RawDocumentBuf) -> Result<Document> {
    let mut stored = Bsons::try_from(stored.as_ref()).map_err(|error| odd(error.to_string()))?;
    let uuid = |name: &str| {
        let bytes = stored.get_binary_generic(name).ok().or_else(|| match stored.get(name) {
            Some(Bson::Binary(binary)) => Some(&binary.bytes),
            _ => None,
        });
        bytes
            .and_then(|bytes| Uuid::from_slice(bytes).ok())
            .ok_or_else(|| odd(format!("a record has no {name}")))
    };
    let (id, group) = (uuid("id")?, uuid("group")?);
    let updated_at = stored.get_datetime("updated_at").ok().map(|at| at.timestamp_millis());
    let updated_at = updated_at.and_then(DateTime::from_timestamp_millis);
    let version = stored.get_i64("version").map_err(|error| odd(error.to_string()))?;
    let body = stored.remove("body").ok_or_else(|| odd("a record has no body"))?;
    Ok(Document {
        id,
        group,
        version,
        updated_at: updated_at.ok_or_else(|| odd("a record has no time"))?,
        body: json(body)?,
    })
}
