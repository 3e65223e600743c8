//! The adapter on a real S3 store.

use blobs::{Announced, Blobs, Error, Key, Method, PART, Put, Signed, body, digest};
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use futures::StreamExt;
use gantry_blobs_s3::{Config, S3Blobs, Unusable};
use std::{io, time::Duration};
use testkit::S3Bucket;
use tokio::time::{Instant, sleep};

fn config(bucket: &S3Bucket) -> Config {
    Config {
        endpoint: bucket.endpoint.clone(),
        region: "us-east-1".to_owned(),
        bucket: bucket.bucket.clone(),
        access_key: bucket.access_key.clone(),
        secret_key: bucket.secret_key.clone(),
        path_style: true,
        ..Config::default()
    }
}

fn adapter(config: &Config) -> S3Blobs {
    // Fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    S3Blobs::new(config).unwrap()
}

async fn store() -> Option<(S3Blobs, S3Bucket)> {
    let bucket = testkit::s3().await?;
    Some((adapter(&config(&bucket)), bucket))
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// What a holder of the permission gets: status and body.
async fn present(method: reqwest::Method, signed: &Signed, content: &[u8]) -> (u16, Vec<u8>) {
    let mut request = reqwest::Client::new().request(method, &signed.url).body(content.to_vec());
    // The length is the client's own to send.
    for (name, value) in signed.headers.iter().filter(|(name, _)| name != "content-length") {
        request = request.header(name, value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn the_s3_adapter_keeps_the_contract() {
    let Some((blobs, _)) = store().await else { return };
    blobs.check().await.unwrap();
    blobs::contract::suite(&blobs).await;
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_does_not_open_is_said_at_the_start() {
    let Some(bucket) = testkit::s3().await else { return };
    let missing = adapter(&Config { bucket: "not-there".to_owned(), ..config(&bucket) });
    assert!(matches!(missing.check().await, Err(Unusable::Bucket { .. })));
    let wrong = adapter(&Config { secret_key: "another".to_owned(), ..config(&bucket) });
    let refused = wrong.check().await.unwrap_err().to_string();
    assert!(refused.contains(&bucket.bucket) && refused.contains("403"), "{refused}");
    assert!(wrong.head(&key("a")).await.is_err(), "not to be let in is not the same as nothing there");
    let away = adapter(&Config { endpoint: "http://127.0.0.1:1".to_owned(), ..config(&bucket) });
    away.check().await.unwrap();
    assert!(matches!(away.get(&key("a"), None).await, Err(Error::Io(_))));
    assert!(matches!(S3Blobs::new(&Config::default()), Err(Unusable::Endpoint(_))));
}

#[tokio::test]
async fn large_bodies_go_in_parts_and_the_first_writer_wins() {
    let Some((blobs, _)) = store().await else { return };
    let content: Vec<u8> = (0..20_000_003u32).map(|n| (n % 251) as u8).collect();
    let pieces = || {
        let pieces: Vec<_> = content.chunks(1 << 20).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        futures::stream::iter(pieces).boxed()
    };
    let (large, sha256) = (key("logs/large"), digest(&content));
    let puts = futures::future::join_all((0..3).map(|_| blobs.put(&large, pieces(), sha256))).await;
    let stored = puts.iter().filter(|put| matches!(put, Ok(Put::Stored(_)))).count();
    assert_eq!(stored, 1, "{puts:?}");
    assert!(puts.iter().all(|put| put.as_ref().is_ok_and(|put| put.meta().sha256 == sha256)), "{puts:?}");
    let meta = blobs.head(&large).await.unwrap().unwrap();
    assert_eq!((meta.size, meta.sha256), (content.len() as u64, sha256));
    assert_eq!(blobs.get(&large, None).await.unwrap().bytes().await.unwrap(), content);
    let part = blobs.get(&large, Some(8_388_600..8_388_620)).await.unwrap();
    assert_eq!((part.meta, part.range.clone()), (meta, 8_388_600..8_388_620));
    assert_eq!(part.bytes().await.unwrap(), &content[8_388_600..8_388_620]);

    let wrong = blobs.put(&key("logs/wrong"), pieces(), digest(b"something else")).await;
    assert!(matches!(wrong, Err(Error::Mismatch { .. })), "{wrong:?}");
    let broken = pieces().chain(futures::stream::iter([Err(io::Error::other("gone"))])).boxed();
    assert!(blobs.put(&key("logs/wrong"), broken, sha256).await.is_err());
    assert_eq!(blobs.head(&key("logs/wrong")).await.unwrap(), None);
    assert_eq!(blobs.abort_stale(TimeDelta::zero()).await.unwrap(), 0, "every upload was ended or given up");
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_are_given_up() {
    let Some((blobs, _)) = store().await else { return };
    let stuck = futures::stream::iter([Ok(Bytes::from(vec![7; 9 << 20]))]).chain(futures::stream::pending());
    let sha256 = digest(b"never to be known");
    // A writer that was killed in the middle.
    let name = key("logs/stuck");
    let dead = tokio::time::timeout(Duration::from_secs(2), blobs.put(&name, stuck.boxed(), sha256)).await;
    assert!(dead.is_err());
    assert_eq!(blobs.abort_stale(TimeDelta::hours(1)).await.unwrap(), 0, "others may be at work");
    assert_eq!(blobs.abort_stale(TimeDelta::zero()).await.unwrap(), 1);
    assert_eq!(blobs.abort_stale(TimeDelta::zero()).await.unwrap(), 0);
    assert_eq!(blobs.head(&name).await.unwrap(), None);
}

#[tokio::test]
async fn a_signed_upload_takes_the_announced_bytes_and_nothing_else() {
    let Some((blobs, _)) = store().await else { return };
    let (object, later) = (key("stores/one"), Utc::now() + TimeDelta::minutes(5));
    let put =
        |signed: Signed, content| async move { present(reqwest::Method::PUT, &signed, content).await.0 };
    let signed = blobs.sign(&object, Method::Put { size: 5, sha256: digest(b"hello") }, later);

    assert_ne!(put(signed.clone(), b"hellO").await, 200, "other bytes");
    assert_ne!(put(signed.clone(), b"hello!").await, 200, "more bytes");
    assert_ne!(put(Signed { headers: Vec::new(), ..signed.clone() }, b"hello").await, 200, "no checksum");
    let other = Signed {
        headers: signed.headers.iter().cloned().map(|(name, _)| (name, blobs_checksum(b"hellO"))).collect(),
        ..signed.clone()
    };
    assert_ne!(put(other, b"hellO").await, 200, "another checksum");
    let elsewhere = Signed { url: signed.url.replace("one", "two"), ..signed.clone() };
    assert_ne!(put(elsewhere, b"hello").await, 200, "another key");
    assert_eq!(present(reqwest::Method::GET, &signed, b"").await.0, 403, "a URL to write does not read");
    assert_eq!(blobs.head(&object).await.unwrap(), None, "nothing wrong became visible");

    assert_eq!(put(signed.clone(), b"hello").await, 200);
    assert_eq!(put(signed, b"hello").await, 200, "a repeat changes nothing");
    let meta = blobs.head(&object).await.unwrap().unwrap();
    assert_eq!((meta.size, meta.sha256), (5, digest(b"hello")), "as the store verified it");
    assert_eq!(blobs.get(&object, None).await.unwrap().bytes().await.unwrap(), b"hello");
    let part = blobs.get(&object, Some(1..3)).await.unwrap();
    assert_eq!(part.meta.sha256, digest(b"hello"));
    assert_eq!(part.bytes().await.unwrap(), b"el");
}

#[tokio::test]
async fn signed_parts_become_one_blob_when_all_are_there() {
    let Some((blobs, _)) = store().await else { return };
    let content: Vec<u8> = (0..2 * PART + 5).map(|n| (n % 251) as u8).collect();
    let pieces: Vec<&[u8]> = content.chunks(usize::try_from(PART).unwrap()).collect();
    let digests = pieces.iter().map(|piece| digest(piece)).collect();
    let announced = Announced::new(content.len() as u64, digests).unwrap();
    let (object, later) = (key("stores/parts"), Utc::now() + TimeDelta::minutes(5));
    let parts = blobs.in_parts().expect("the store takes parts");
    let upload = parts.begin(&object, &announced).await.unwrap();
    let put = async |at: usize, content: &[u8]| {
        let signed = parts.sign_part(&object, &upload, &announced, at, later).unwrap();
        present(reqwest::Method::PUT, &signed, content).await.0
    };

    let mut other = pieces[1].to_vec();
    other[7] ^= 1;
    assert_ne!(put(1, &other).await, 200, "other bytes");
    assert_ne!(put(2, &pieces[2][..4]).await, 200, "fewer bytes");
    assert_ne!(put(0, pieces[1]).await, 200, "another part");
    assert!(parts.sign_part(&object, &upload, &announced, 3, later).is_none());
    // Out of order, and one of them twice.
    for at in [2, 0, 2] {
        assert_eq!(put(at, pieces[at]).await, 200);
    }
    let early = parts.finish(&object, &upload, &announced).await;
    assert!(matches!(early, Err(Error::Mismatch { what: "number of parts", .. })), "{early:?}");
    assert_eq!(blobs.head(&object).await.unwrap(), None, "nothing is visible yet");
    assert_eq!(put(1, pieces[1]).await, 200);
    let whole = parts.finish(&object, &upload, &announced).await.unwrap();
    assert!(matches!(whole, Put::Stored(_)), "{whole:?}");

    let meta = blobs.head(&object).await.unwrap().unwrap();
    assert_eq!((meta.size, meta.sha256), (announced.size(), announced.sha256()));
    assert_eq!(whole.meta(), meta);
    assert_eq!(blobs.get(&object, None).await.unwrap().bytes().await.unwrap(), content);
    let middle = blobs.get(&object, Some(PART - 2..PART + 2)).await.unwrap().bytes().await.unwrap();
    let cut = usize::try_from(PART).unwrap();
    assert_eq!(middle, content[cut - 2..cut + 2]);
    // An answer that was lost is asked for again.
    let again = parts.finish(&object, &upload, &announced).await.unwrap();
    assert!(matches!(again, Put::AlreadyExists(same) if same == meta), "{again:?}");
    assert_eq!(blobs.abort_stale(TimeDelta::zero()).await.unwrap(), 0);
    let (read, damaged) = blobs.audit().await.unwrap();
    assert_eq!((read, damaged.len()), (1, 0));
}

#[tokio::test]
async fn parts_that_nobody_finishes_are_given_up() {
    let Some((blobs, _)) = store().await else { return };
    let announced = Announced::new(PART + 1, vec![digest(b"a"), digest(b"b")]).unwrap();
    let object = key("stores/left");
    let parts = blobs.in_parts().unwrap();
    let upload = parts.begin(&object, &announced).await.unwrap();
    assert_eq!(blobs.abort_stale(TimeDelta::zero()).await.unwrap(), 1);
    let late = parts.finish(&object, &upload, &announced).await;
    assert!(matches!(late, Err(Error::Mismatch { .. })), "{late:?}");
}

/// A checksum as the store writes it.
fn blobs_checksum(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(digest(bytes))
}

#[tokio::test]
async fn a_signed_download_is_saved_and_ends() {
    let Some((blobs, bucket)) = store().await else { return };
    let object = key("stores/page");
    blobs.put(&object, body("<html>"), digest(b"<html>")).await.unwrap();
    let later = Utc::now() + TimeDelta::minutes(5);
    let url = blobs.sign_download(&object, later, "ü \"x\".html");
    let response = reqwest::get(&url).await.unwrap();
    assert_eq!(
        response.headers()["content-disposition"],
        "attachment; filename*=UTF-8''%C3%BC%20%22x%22.html"
    );
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert_eq!(response.bytes().await.unwrap(), &b"<html>"[..]);
    let shown = url.replace("octet-stream", "html").replace("application", "text");
    assert_eq!(reqwest::get(&shown).await.unwrap().status(), 403, "nobody makes a page of it");

    // People may reach the store at another address than services.
    let public_endpoint = bucket.endpoint.replace("127.0.0.1", "localhost");
    let other = adapter(&Config { public_endpoint: public_endpoint.clone(), ..config(&bucket) });
    let signed = other.sign(&object, Method::Get, later);
    assert!(signed.url.starts_with(&public_endpoint));
    assert_eq!(present(reqwest::Method::GET, &signed, b"").await, (200, b"<html>".to_vec()));

    let brief = blobs.sign(&object, Method::Get, Utc::now());
    let limit = Instant::now() + Duration::from_secs(20);
    while present(reqwest::Method::GET, &brief, b"").await.0 != 403 {
        assert!(Instant::now() < limit, "the URL never ends");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn no_key_is_the_folder_of_another() {
    let Some((blobs, _)) = store().await else { return };
    for name in ["a", "a/b", "a/b/c", "a.", "~"] {
        let put = blobs.put(&key(name), body(name), digest(name.as_bytes())).await;
        assert!(matches!(put, Ok(Put::Stored(_))), "{name}: {put:?}");
    }
    assert_eq!(blobs.get(&key("a/b"), None).await.unwrap().bytes().await.unwrap(), b"a/b");
    assert!(blobs.delete(&key("a")).await.unwrap());
    assert!(blobs.head(&key("a/b/c")).await.unwrap().is_some());
}

#[tokio::test]
async fn damaged_bytes_are_never_passed_off_as_whole() {
    let Some((blobs, bucket)) = store().await else { return };
    for name in ["logs/good", "logs/bad"] {
        blobs.put(&key(name), body("0123456789"), digest(b"0123456789")).await.unwrap();
    }
    assert_eq!(blobs.audit().await.unwrap(), (2, Vec::new()));
    // Written over in place, so that what the store knows of the object stays.
    std::fs::write(bucket.folder.join("logs/bad!"), "0123456780").unwrap();
    assert!(blobs.get(&key("logs/bad"), None).await.unwrap().bytes().await.is_err());
    let (read, damaged) = blobs.audit().await.unwrap();
    assert_eq!(read, 2);
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(damaged[0].key.as_deref(), Some("logs/bad"));
}
