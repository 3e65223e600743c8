//! What every adapter must do.

use crate::{NewDocument, Records};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

const KIND: &str = "contract";

fn document(id: Uuid, group: Uuid, version: i64) -> NewDocument {
    NewDocument {
        kind: KIND,
        id,
        group,
        version,
        body: json!({"version": version, "text": "ü \u{1f600} \u{1}"}),
    }
}

/// Runs the whole suite; the store must have no documents of the kind `contract`.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(records: &dyn Records) {
    let (group, other) = (ids::MessageId::new().uuid(), ids::MessageId::new().uuid());
    let [a, b, c] =
        [ids::MessageId::new().uuid(), ids::MessageId::new().uuid(), ids::MessageId::new().uuid()];
    assert!(records.get(KIND, a).await.expect("answers").is_none());
    assert!(records.put(&[]).await.expect("nothing is fine").is_empty());

    let put = records
        .put(&[document(a, group, 2), document(b, group, 1), document(c, other, 1)])
        .await
        .expect("stores");
    assert_eq!(put, [true, true, true]);
    let put = records
        .put(&[document(a, group, 1), document(b, group, 1), document(c, other, 2)])
        .await
        .expect("answers");
    assert_eq!(put, [false, false, true], "an older or equal version is ignored");
    let put = records.put(&[document(b, group, 2), document(b, group, 3)]).await.expect("stores");
    assert!(put[1], "the newest of a batch wins");
    assert_eq!(
        records.get(KIND, a).await.expect("answers").expect("exists").body,
        document(a, group, 2).body
    );
    assert!(records.get("other kind", a).await.expect("answers").is_none());

    let listed = records.list_by(KIND, group).await.expect("lists");
    assert_eq!(listed.iter().map(|d| (d.id, d.version)).collect::<Vec<_>>(), [(a, 2), (b, 3)]);

    let writers = (10..20)
        .map(|version| async move { records.put(&[document(a, group, version)]).await.expect("stores") });
    let mut all = Vec::new();
    for writer in writers {
        all.push(writer.await);
    }
    assert_eq!(records.get(KIND, a).await.expect("answers").expect("exists").version, 19);
    records.flush().await.expect("flushes");
    records.flush().await.expect("flushes again");

    let newest = records.get(KIND, a).await.expect("answers").expect("exists").updated_at;
    let old = records.unchanged_since(KIND, newest, 10).await.expect("lists");
    assert!(old.iter().all(|d| d.id != a) && old.len() == 2, "{old:?}");
    let soon = newest + Duration::from_secs(3600);
    assert_eq!(records.unchanged_since(KIND, soon, 1).await.expect("lists").len(), 1);
    records.remove(KIND, &[a, b, c, ids::MessageId::new().uuid()]).await.expect("removes");
    assert!(records.unchanged_since(KIND, soon, 10).await.expect("lists").is_empty());
}
