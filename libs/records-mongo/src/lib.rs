//! Records in MongoDB, or what speaks its protocol: one collection, one document for each record.
//!
//! Works without transactions, change streams and validators, which not every server of the protocol has: a document is
//! replaced by one operation, only by a newer one.

mod document;

use async_trait::async_trait;
use document::{fields, identity, of};
use futures::TryStreamExt;
use ids::Timestamp;
use mongodb::{
    Client, Collection, IndexModel,
    bson::{Bson, DateTime, Document as Bsons, RawDocumentBuf, doc},
    error::{Error as MongoError, ErrorKind},
    options::{Acknowledgment, ClientOptions, FindOptions, WriteConcern},
};
use records::{Document, Error, NewDocument, Records, Result};
use std::{cmp::Reverse, collections::HashMap, time::Duration};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The collection.
const RECORDS: &str = "records";
/// What a flush writes to.
const FLUSHES: &str = "flushes";
/// Another writer's document, or its own newer version, has the name: MongoDB's number for it.
const DUPLICATE: i32 = 11000;
/// Longest wait for a server that can be written to.
const PATIENCE: Duration = Duration::from_secs(3);

/// The adapter; cheap to clone.
#[derive(Clone, Debug)]
pub struct MongoRecords {
    client: Client,
    database: String,
    indexed: std::sync::Arc<OnceCell<()>>,
}

fn failed(error: MongoError) -> Error {
    Error::from(Box::<dyn std::error::Error + Send + Sync>::from(error))
}

fn odd(what: impl Into<String>) -> Error {
    Error::from(Box::<dyn std::error::Error + Send + Sync>::from(what.into()))
}

impl MongoRecords {
    /// An adapter for the server at `url` (`mongodb://…/database`); without a database in it, `gantry`. Connects when it
    /// is first used.
    ///
    /// # Errors
    /// The URL cannot be read.
    pub async fn new(url: &str) -> Result<Self> {
        let mut options = ClientOptions::parse(url).await.map_err(failed)?;
        options.server_selection_timeout = Some(PATIENCE);
        options.connect_timeout = Some(PATIENCE);
        options.app_name = Some("gantry".to_owned());
        let database = options.default_database.clone().unwrap_or_else(|| "gantry".to_owned());
        let client = Client::with_options(options).map_err(failed)?;
        Ok(Self { client, database, indexed: std::sync::Arc::default() })
    }

    fn collection(&self, name: &str) -> Collection<RawDocumentBuf> {
        self.client.database(&self.database).collection(name)
    }

    /// The collection, with its indexes.
    async fn records(&self) -> Result<Collection<RawDocumentBuf>> {
        let records = self.collection(RECORDS);
        let index = || async {
            let keys = [doc! { "kind": 1, "group": 1, "id": 1 }, doc! { "kind": 1, "updated_at": 1 }];
            records.create_indexes(keys.map(|keys| IndexModel::builder().keys(keys).build())).await
        };
        self.indexed.get_or_try_init(async || index().await.map(drop)).await.map_err(failed)?;
        Ok(records)
    }

    /// Writes each of these if it is newer than what is there; which were not written. A document that is not there yet
    /// is inserted under its name, which fails where one has the name that is not older.
    async fn replace(&self, newer: &[&NewDocument]) -> Result<Vec<usize>> {
        let mut updates = Vec::with_capacity(newer.len());
        for document in newer {
            updates.push(doc! {
                "q": { "_id": identity(document.kind, document.id), "version": { "$lt": document.version } },
                "u": { "$set": fields(document), "$currentDate": { "updated_at": true } },
                "upsert": true,
            });
        }
        let command = doc! { "update": RECORDS, "updates": updates, "ordered": false };
        let answer = self.client.database(&self.database).run_command(command).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => match *error.kind {
                // A single update that fails is told as the whole command's.
                ErrorKind::Command(ref command) if newer.len() == 1 && command.code == DUPLICATE => {
                    return Ok(vec![0]);
                }
                _ => return Err(failed(error)),
            },
        };
        let mut refused = Vec::new();
        for error in answer.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
            if !error.get_i32("code").is_ok_and(|code| code == DUPLICATE) {
                return Err(odd(error.get_str("errmsg").unwrap_or("a document was not written")));
            }
            let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
            refused.push(index.ok_or_else(|| odd("the server does not say which document was not written"))?);
        }
        Ok(refused)
    }

    async fn find(&self, filter: Bsons, options: FindOptions) -> Result<Vec<Document>> {
        let found = self.records().await?.find(filter).with_options(options).await.map_err(failed)?;
        let all: Vec<RawDocumentBuf> = found.try_collect().await.map_err(failed)?;
        all.iter().map(of).collect()
    }
}

#[async_trait]
impl Records for MongoRecords {
    /// Each document by itself: a failure may leave some written, and a repeat is harmless.
    async fn put(&self, documents: &[NewDocument]) -> Result<Vec<bool>> {
        self.records().await?;
        let mut newest: Vec<&NewDocument> = documents.iter().collect();
        newest.sort_by_key(|document| (document.kind, document.id, Reverse(document.version)));
        newest.dedup_by_key(|document| (document.kind, document.id));
        let mut written: HashMap<(&str, Uuid), i64> =
            newest.iter().map(|document| ((document.kind, document.id), document.version)).collect();
        // Refused the first time may mean that another writer inserted an older one at the same moment.
        for _ in 0..2 {
            if newest.is_empty() {
                break;
            }
            let refused = self.replace(&newest).await?;
            newest = refused.into_iter().filter_map(|place| newest.get(place).copied()).collect();
        }
        for document in newest {
            written.remove(&(document.kind, document.id));
        }
        let was =
            |document: &NewDocument| written.get(&(document.kind, document.id)) == Some(&document.version);
        Ok(documents.iter().map(was).collect())
    }

    async fn get(&self, kind: &str, id: Uuid) -> Result<Option<Document>> {
        let found =
            self.records().await?.find_one(doc! { "_id": identity(kind, id) }).await.map_err(failed)?;
        found.as_ref().map(of).transpose()
    }

    async fn list_by(&self, kind: &str, group: Uuid) -> Result<Vec<Document>> {
        let filter = doc! { "kind": kind, "group": document::id(group) };
        self.find(filter, FindOptions::builder().sort(doc! { "id": 1 }).build()).await
    }

    async fn unchanged_since(&self, kind: &str, before: Timestamp, limit: u32) -> Result<Vec<Document>> {
        let before = DateTime::from_millis(before.timestamp_millis());
        let options = FindOptions::builder().sort(doc! { "updated_at": 1 }).limit(i64::from(limit)).build();
        self.find(doc! { "kind": kind, "updated_at": { "$lt": before } }, options).await
    }

    async fn remove(&self, kind: &str, ids: &[Uuid]) -> Result<()> {
        let ids: Vec<String> = ids.iter().map(|id| identity(kind, *id)).collect();
        self.records().await?.delete_many(doc! { "_id": { "$in": ids } }).await.map_err(failed)?;
        Ok(())
    }

    /// A write that a majority has in its journal, which is written in order.
    async fn flush(&self) -> Result<()> {
        let durable = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
        let flushes = self.collection(FLUSHES);
        let count = doc! { "$inc": { "count": 1_i64 } };
        flushes
            .update_one(doc! { "_id": "one" }, count)
            .upsert(true)
            .write_concern(durable)
            .await
            .map_err(failed)?;
        Ok(())
    }
}
