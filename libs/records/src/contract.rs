//! What every adapter must do.

use crate::{NewDocument, Records};
use serde_json::json;
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

/// Runs the whole suite; the store must have no documents of the kind `contract`. `lose` takes everything from the store
/// behind the adapter's back.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(records: &dyn Records, lose: impl AsyncFn()) {
    versions(records).await;
    losses(records, lose).await;
}

/// Of each document the newest version stays.
async fn versions(records: &dyn Records) {
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

    let writers = (10..20).map(|version| async move {
        records.put(&[document(a, group, version)]).await.expect("stores");
    });
    futures::future::join_all(writers).await;
    assert_eq!(records.get(KIND, a).await.expect("answers").expect("exists").version, 19);
    records.flush().await.expect("flushes");
    records.flush().await.expect("flushes again");

    records.remove(KIND, &[a, b, ids::MessageId::new().uuid()]).await.expect("removes");
    assert!(records.list_by(KIND, group).await.expect("lists").is_empty());
    let left = records.get(KIND, c).await.expect("answers").expect("exists");
    assert_eq!((left.group, left.version), (other, 2), "what was not named stays");
    records.remove(KIND, &[c]).await.expect("removes");
}

/// A store that lost everything under the adapter is used on without a restart.
async fn losses(records: &dyn Records, lose: impl AsyncFn()) {
    let group = ids::MessageId::new().uuid();
    let [known, new] = [ids::MessageId::new().uuid(), ids::MessageId::new().uuid()];
    records.prepare().await.expect("is prepared already");
    records.put(&[document(known, group, 5)]).await.expect("stores");
    records.prepare().await.expect("takes nothing away");
    assert_eq!(records.list_by(KIND, group).await.expect("lists").len(), 1);

    lose().await;
    records.prepare().await.expect("makes it anew");
    assert!(records.get(KIND, known).await.expect("answers").is_none());
    assert!(records.list_by(KIND, group).await.expect("lists").is_empty());
    // What was known once is not: a lower version than before is the newest again.
    let put = records.put(&[document(known, group, 3), document(new, group, 1)]).await.expect("stores");
    assert_eq!(put, [true, true]);
    assert_eq!(records.put(&[document(known, group, 2)]).await.expect("answers"), [false]);
    assert_eq!(records.put(&[document(known, group, 4)]).await.expect("stores"), [true]);
    records.flush().await.expect("flushes");
    let listed = records.list_by(KIND, group).await.expect("lists");
    let mut listed: Vec<_> = listed.into_iter().map(|d| (d.id, d.version)).collect();
    listed.sort_by_key(|(id, _)| *id != known);
    assert_eq!(listed, [(known, 4), (new, 1)]);
    records.remove(KIND, &[known, new]).await.expect("removes");
}
