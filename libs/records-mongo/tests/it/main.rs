//! The adapter on a real server of MongoDB's protocol.

use gantry_records_mongo::MongoRecords;
use mongodb::{Client, Database, bson::Document};
use records::{NewDocument, Records};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

async fn store() -> Option<MongoRecords> {
    Some(MongoRecords::new(&url().await?).await.unwrap())
}

/// Of a database of its own.
async fn url() -> Option<String> {
    // Fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    testkit::mongo().await
}

/// Somebody else's way to the database.
async fn beside(url: &str) -> Database {
    let client = Client::with_uri_str(url).await.unwrap();
    client.default_database().unwrap()
}

fn document(id: uuid::Uuid, version: i64, body: Value) -> NewDocument {
    NewDocument { kind: "step", id, group: id, version, body }
}

#[tokio::test]
async fn the_mongo_adapter_keeps_the_contract() {
    let Some(url) = url().await else { return };
    let (records, database) = (MongoRecords::new(&url).await.unwrap(), beside(&url).await);
    records::contract::suite(&records, async || database.drop().await.unwrap()).await;
}

#[tokio::test]
async fn a_database_that_was_dropped_gets_its_index_back() {
    let Some(url) = url().await else { return };
    let (records, database) = (MongoRecords::new(&url).await.unwrap(), beside(&url).await);
    let documents = database.collection::<Document>("records");
    let id = ids::MessageId::new().uuid();
    records.put(&[document(id, 1, json!({}))]).await.unwrap();
    let before = documents.list_index_names().await.unwrap();
    assert_eq!(before.len(), 2, "its name's, and that by group: {before:?}");
    database.drop().await.unwrap();
    // Without it the collection is there again, and slow.
    records.put(&[document(id, 1, json!({}))]).await.unwrap();
    records.prepare().await.unwrap();
    assert_eq!(documents.list_index_names().await.unwrap(), before);
}

#[tokio::test]
async fn of_many_writers_at_once_the_newest_stays() {
    let Some(records) = store().await else { return };
    let id = ids::MessageId::new().uuid();
    let writers = (1..=30i64).map(|version| {
        let records = records.clone();
        async move { records.put(&[document(id, version, json!({ "version": version }))]).await.unwrap() }
    });
    futures::future::join_all(writers).await;
    let stored = records.get("step", id).await.unwrap().unwrap();
    assert_eq!((stored.version, stored.body), (30, json!({"version": 30})));
    let all: Vec<_> = (0..200).map(|_| document(ids::MessageId::new().uuid(), 1, json!({}))).collect();
    assert!(records.put(&all).await.unwrap().into_iter().all(|newer| newer));
    assert!(records.put(&all).await.unwrap().into_iter().all(|newer| !newer));
}

#[tokio::test]
async fn a_body_comes_back_as_it_was() {
    let Some(records) = store().await else { return };
    let id = ids::MessageId::new().uuid();
    let body = json!({
        "zebra": 1, "apple": -7, "large": i64::MAX, "part": 0.1, "none": null, "yes": true, "list": [[], {}, [1, "x"]],
        "": "empty", "with.dot": 1, "$dollar": {"$date": "no date"}, "ü": "\u{1f600}\n",
    });
    records.put(&[document(id, 1, body.clone())]).await.unwrap();
    let stored = records.get("step", id).await.unwrap().unwrap();
    assert_eq!(stored.body.to_string(), body.to_string(), "with the order of its keys");
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_soon() {
    // Needs no server: the other tests say when there is none.
    let away = MongoRecords::new("mongodb://someone:hidden@127.0.0.1:1/x").await.unwrap();
    let prepared = timeout(Duration::from_secs(10), away.prepare()).await;
    let error = prepared.expect("an answer within ten seconds").unwrap_err();
    assert!(!format!("{error:?} {error} {away:?}").contains("hidden"), "{error:?}");
}
