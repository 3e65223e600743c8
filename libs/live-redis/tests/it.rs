//! The adapter against the contract and a real Redis.

use bytes::Bytes;
use gantry_live_redis::RedisLive;
use live::{Live, Message, Quota};
use std::time::Duration;
use tokio_stream::StreamExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_and_processes_hear_each_other() {
    let Some(url) = testkit::redis().await else { return };
    let here = RedisLive::new(&url).expect("a good URL");
    let flush = || {
        let client = redis::Client::open(url.as_str()).expect("a good URL");
        let mut connection = client.get_connection().expect("connects");
        redis::cmd("FLUSHALL").query::<()>(&mut connection).expect("flushes");
    };
    live::contract::suite(&here, flush).await;

    let there = RedisLive::new(&url).expect("a good URL");
    let mut heard = here.subscribe("pipeline:1").await.expect("subscribes");
    there.publish("pipeline:1", Bytes::from_static(b"look")).await.expect("publishes");
    let first = tokio::time::timeout(Duration::from_secs(10), heard.next()).await.expect("arrives");
    assert_eq!(first, Some(Message::Data(Bytes::from_static(b"look"))));
    // A limit is one limit for all processes.
    let quota = Quota { burst: 4, per_second: 0.000_001 };
    for _ in 0..2 {
        assert!(here.take("shared", quota).await.expect("answers").allowed);
        assert!(there.take("shared", quota).await.expect("answers").allowed);
    }
    assert!(!here.take("shared", quota).await.expect("answers").allowed);
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_and_no_wait() {
    let away = RedisLive::new("redis://127.0.0.1:1").expect("a good URL");
    assert!(away.publish("a", Bytes::new()).await.is_err());
    assert!(away.subscribe("a").await.is_err());
    assert!(away.take("a", Quota { burst: 1, per_second: 1.0 }).await.is_err());
    assert!(RedisLive::new("nonsense://").is_err());
}
