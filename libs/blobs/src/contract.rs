//! What every adapter must do.

use crate::{Blobs, Error, Key, Put, body, digest};
use bytes::Bytes;
use futures::StreamExt;
use std::io;

/// Runs the whole suite; the store must be empty of keys that begin with `contract/`.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(blobs: &dyn Blobs) {
    round_trip_and_ranges(blobs).await;
    nothing_wrong_becomes_visible(blobs).await;
    first_writer_wins(blobs).await;
}

fn key(name: &str) -> Key {
    Key::new(format!("contract/{name}")).expect("a plain key")
}

async fn round_trip_and_ranges(blobs: &dyn Blobs) {
    let key = key("round-trip");
    let content: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let pieces: Vec<_> = content.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let put = blobs.put(&key, futures::stream::iter(pieces).boxed(), digest(&content)).await.expect("stores");
    assert!(matches!(put, Put::Stored(_)));
    let meta = blobs.head(&key).await.expect("answers").expect("exists");
    assert_eq!((meta.size, meta.sha256), (content.len() as u64, digest(&content)));
    assert_eq!(blobs.get(&key, None).await.expect("reads").bytes().await.expect("reads"), content);
    for (start, end) in
        [(0, 0), (0, 1), (5, 9), (262_143, 262_145), (1_000_000, 1_000_003), (1_000_000, 2_000_000)]
    {
        let part = blobs.get(&key, Some(start..end)).await.expect("reads");
        let end = end.min(content.len() as u64);
        assert_eq!(part.range, start..end);
        let expected = &content[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")];
        assert_eq!(part.bytes().await.expect("reads"), expected);
    }
    let past = blobs.get(&key, Some(1_000_004..1_000_005)).await;
    assert!(matches!(past, Err(Error::Range { .. })), "{past:?}");
    let empty = self::key("empty");
    blobs.put(&empty, body(""), digest(b"")).await.expect("stores nothing");
    assert_eq!(blobs.get(&empty, None).await.expect("reads").bytes().await.expect("reads"), b"");
}

async fn nothing_wrong_becomes_visible(blobs: &dyn Blobs) {
    let key = key("wrong");
    let wrong = blobs.put(&key, body("hello"), digest(b"hallo")).await;
    assert!(matches!(wrong, Err(Error::Mismatch { what: "digest", .. })), "{wrong:?}");
    let broken =
        futures::stream::iter([Ok(Bytes::from_static(b"hel")), Err(io::Error::other("gone"))]).boxed();
    assert!(blobs.put(&key, broken, digest(b"hel")).await.is_err(), "a body that breaks off is not stored");
    assert_eq!(blobs.head(&key).await.expect("answers"), None);
    assert!(matches!(blobs.get(&key, None).await, Err(Error::Missing(_))));
    blobs.put(&key, body("hello"), digest(b"hello")).await.expect("a right one is stored after all");
}

async fn first_writer_wins(blobs: &dyn Blobs) {
    let key = key("first");
    let writers = (0..8u8).map(|n| async move {
        let content = vec![n; 1000];
        let sha256 = digest(&content);
        blobs.put(&self::key("first"), body(content), sha256).await.expect("is answered")
    });
    let puts = futures::future::join_all(writers).await;
    assert_eq!(puts.iter().filter(|put| matches!(put, Put::Stored(_))).count(), 1);
    let stored = blobs.get(&key, None).await.expect("reads");
    let sha256 = stored.meta.sha256;
    assert!(puts.iter().all(|put| put.meta().sha256 == sha256), "everyone is told what is there");
    assert_eq!(digest(&stored.bytes().await.expect("reads")), sha256);
    assert!(blobs.delete(&key).await.expect("deletes"));
    assert!(!blobs.delete(&key).await.expect("answers"), "there is nothing left");
    assert_eq!(blobs.head(&key).await.expect("answers"), None);
}
