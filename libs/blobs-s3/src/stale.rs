//! Uploads in parts that nobody goes on with: the store keeps their parts until they are given up.

use crate::{
    S3Blobs,
    store::{self, Store},
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use instant_xml::FromXml;
use rusty_s3::actions::S3Action;
use std::io;

const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

#[derive(FromXml)]
#[xml(rename = "ListMultipartUploadsResult", ns(NAMESPACE))]
struct Page {
    uploads: Vec<Upload>,
    #[xml(rename = "IsTruncated")]
    truncated: Option<bool>,
    #[xml(rename = "NextKeyMarker")]
    next_key: Option<String>,
    #[xml(rename = "NextUploadIdMarker")]
    next_upload: Option<String>,
}

#[derive(FromXml)]
#[xml(rename = "Upload", ns(NAMESPACE))]
struct Upload {
    #[xml(rename = "Key")]
    key: String,
    #[xml(rename = "UploadId")]
    id: String,
    #[xml(rename = "Initiated")]
    begun: String,
}

impl S3Blobs {
    /// Gives up every upload in parts that began longer than `age` ago (reliability §8.4). How many.
    ///
    /// # Errors
    /// The store does not list them.
    pub async fn abort_stale(&self, age: TimeDelta) -> io::Result<usize> {
        let (store, before) = (&*self.0, Utc::now() - age);
        let (mut given_up, mut after) = (0, None);
        loop {
            let page = page(store, after.take()).await?;
            for upload in &page.uploads {
                let begun: DateTime<Utc> = upload.begun.parse().map_err(io::Error::other)?;
                if begun <= before {
                    store.abort(&upload.key, &upload.id).await;
                    given_up += 1;
                }
            }
            match (page.truncated, page.next_key, page.next_upload) {
                (Some(true), Some(key), Some(upload)) => after = Some((key, upload)),
                _ => return Ok(given_up),
            }
        }
    }
}

async fn page(store: &Store, after: Option<(String, String)>) -> io::Result<Page> {
    // The library has no such action: it is the listing of the bucket with another question.
    let mut action = store.bucket.list_objects_v2(Some(&store.credentials));
    let query = action.query_mut();
    query.remove("list-type");
    query.remove("encoding-type");
    query.insert("uploads", "");
    if let Some((key, upload)) = after {
        query.insert("key-marker", key);
        query.insert("upload-id-marker", upload);
    }
    let response = store.send(&store::own(action, Vec::new()), Bytes::new()).await?;
    let text = response.text().await.map_err(|error| io::Error::other(error.without_url()))?;
    instant_xml::from_str(&text).map_err(io::Error::other)
}
