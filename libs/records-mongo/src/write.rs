//! The command that writes records, and what its answer says.

use crate::{
    RECORDS,
    document::{fields, identity},
    odd,
};
use mongodb::bson::{Bson, Document as Bsons, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use records::{NewDocument, Result};
use std::time::Duration;

/// Another writer's document, or its own newer version, has the name: MongoDB's number for it.
pub(crate) const DUPLICATE: i32 = 11000;
/// Longest wait for the other members of a replica set.
const REPLICATED: Duration = Duration::from_secs(5);

/// What is answered lies in the journals of a majority: whoever is elected next has it.
pub(crate) fn concern() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(REPLICATED).build()
}

/// Writes each of these if it is newer than what is there. A document that is not there yet is inserted under its name,
/// which fails where one has the name that is not older.
pub(crate) fn command(newer: &[&NewDocument]) -> Bsons {
    let updates = newer.iter().map(|document| {
        doc! {
            "q": { "_id": identity(document.kind, document.id), "version": { "$lt": document.version } },
            "u": { "$set": fields(document), "$currentDate": { "updated_at": true } },
            "upsert": true,
        }
    });
    let wait = i64::try_from(REPLICATED.as_millis()).unwrap_or(i64::MAX);
    doc! {
        "update": RECORDS,
        "updates": updates.collect::<Vec<_>>(),
        "ordered": false,
        // A command takes nothing over from its client.
        "writeConcern": { "w": "majority", "j": true, "wtimeout": wait },
    }
}

/// Which documents were not written, since others are not older.
///
/// # Errors
/// A document was not written for another reason, or what was written may still be lost.
pub(crate) fn refused(answer: &Bsons) -> Result<Vec<usize>> {
    let mut refused = Vec::new();
    for error in answer.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
        if !error.get_i32("code").is_ok_and(|code| code == DUPLICATE) {
            return Err(odd(error.get_str("errmsg").unwrap_or("a document was not written")));
        }
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        refused.push(index.ok_or_else(|| odd("the server does not say which document was not written"))?);
    }
    // Written, and not by as many as were to have it: a repeat waits for them again.
    if let Ok(error) = answer.get_document("writeConcernError") {
        let why = error.get_str("errmsg").unwrap_or("the server does not say why");
        return Err(odd(format!("no majority of the servers has what was written: {why}")));
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::serialize_to_document;
    use serde_json::json;

    fn duplicate(index: i32) -> Bsons {
        doc! { "index": index, "code": DUPLICATE, "errmsg": "E11000 duplicate key error" }
    }

    #[test]
    fn a_write_waits_for_the_journals_of_a_majority() {
        let id = ids::MessageId::new().uuid();
        let document = NewDocument { kind: "step", id, group: id, version: 7, body: json!({}) };
        let command = command(&[&document]);
        let asked = command.get_document("writeConcern").unwrap();
        assert_eq!(*asked, doc! { "w": "majority", "j": true, "wtimeout": 5000_i64 });
        let everywhere = serialize_to_document(&concern()).unwrap();
        assert_eq!(everywhere.get_str("w").unwrap(), "majority");
        assert!(everywhere.get_bool("j").unwrap());
        let update = command.get_array("updates").unwrap()[0].as_document().unwrap();
        assert_eq!(
            *update.get_document("q").unwrap(),
            doc! { "_id": format!("step/{id}"), "version": { "$lt": 7_i64 } }
        );
    }

    #[test]
    fn an_answer_says_what_was_not_newer() {
        assert_eq!(refused(&doc! { "ok": 1, "n": 2 }).unwrap(), [] as [usize; 0]);
        let answer = doc! { "ok": 1, "writeErrors": [duplicate(0), duplicate(2)] };
        assert_eq!(refused(&answer).unwrap(), [0, 2]);
    }

    #[test]
    fn a_write_that_may_be_lost_is_a_failure() {
        let late = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
        for answer in [
            doc! { "ok": 1, "n": 1, "writeConcernError": late.clone() },
            doc! { "ok": 1, "n": 0, "writeErrors": [duplicate(0)], "writeConcernError": late },
        ] {
            let error = refused(&answer).unwrap_err().to_string();
            assert!(error.contains("majority") && error.contains("timed out"), "{error}");
        }
        let other = doc! { "ok": 1, "writeErrors": [{ "index": 0, "code": 13, "errmsg": "not allowed" }] };
        assert!(refused(&other).unwrap_err().to_string().contains("not allowed"));
        assert!(refused(&doc! { "ok": 1, "writeErrors": [{ "code": DUPLICATE }] }).is_err());
    }
}
