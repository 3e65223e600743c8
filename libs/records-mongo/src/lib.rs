//! Records in MongoDB, or what speaks its protocol: one collection, one document for each record.
//!
//! Works without transactions, change streams and validators, which not every server of the protocol has: a document is
//! replaced by one operation, only by a newer one. What is answered survives the loss of a server, and what is read did too.

mod document;
mod write;

use async_trait::async_trait;
use document::{identity, of};
use futures::TryStreamExt;
use mongodb::{
    Client, Collection, IndexModel,
    bson::{Document as Bsons, RawDocumentBuf, doc},
    error::{Error as MongoError, ErrorKind},
    options::{ClientOptions, FindOptions, ReadConcern},
};
use records::{Document, Error, NewDocument, Records, Result};
use std::{cmp::Reverse, collections::HashMap, time::Duration};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The collection.
const RECORDS: &str = "records";
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
        // Whatever the URL says: less would lose records in an election, or show some that an election then takes back.
        options.write_concern = Some(write::concern());
        options.read_concern = Some(ReadConcern::majority());
        let database = options.default_database.clone().unwrap_or_else(|| "gantry".to_owned());
        let client = Client::with_options(options).map_err(failed)?;
        Ok(Self { client, database, indexed: std::sync::Arc::default() })
    }

    /// The collection, with its index.
    async fn records(&self) -> Result<Collection<RawDocumentBuf>> {
        let records = self.client.database(&self.database).collection(RECORDS);
        self.indexed.get_or_try_init(|| index(&records)).await?;
        Ok(records)
    }

    /// Writes each of these if it is newer than what is there; which were not written.
    async fn replace(&self, newer: &[&NewDocument]) -> Result<Vec<usize>> {
        let answer = self.client.database(&self.database).run_command(write::command(newer)).await;
        match answer {
            Ok(answer) => write::refused(&answer),
            Err(error) => match *error.kind {
                // A single update that fails is told as the whole command's.
                ErrorKind::Command(ref command) if newer.len() == 1 && command.code == write::DUPLICATE => {
                    Ok(vec![0])
                }
                _ => Err(failed(error)),
            },
        }
    }

    async fn find(&self, filter: Bsons, options: FindOptions) -> Result<Vec<Document>> {
        let found = self.records().await?.find(filter).with_options(options).await.map_err(failed)?;
        let all: Vec<RawDocumentBuf> = found.try_collect().await.map_err(failed)?;
        all.iter().map(of).collect()
    }
}

async fn index(records: &Collection<RawDocumentBuf>) -> Result<()> {
    let by_group = IndexModel::builder().keys(doc! { "kind": 1, "group": 1, "id": 1 }).build();
    records.create_index(by_group).await.map(drop).map_err(failed)
}

#[async_trait]
impl Records for MongoRecords {
    /// A collection comes into being with the first document; its index, which is asked for once in each process otherwise,
    /// does not.
    async fn prepare(&self) -> Result<()> {
        index(&self.client.database(&self.database).collection(RECORDS)).await
    }

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

    async fn remove(&self, kind: &str, ids: &[Uuid]) -> Result<()> {
        let ids: Vec<String> = ids.iter().map(|id| identity(kind, *id)).collect();
        self.records().await?.delete_many(doc! { "_id": { "$in": ids } }).await.map_err(failed)?;
        Ok(())
    }

    /// There is nothing to wait for: a write is answered when it survives.
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}
