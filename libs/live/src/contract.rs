//! What every adapter must do.

use crate::{Live, Message, Quota};
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(3600);

/// Runs the whole suite. `flush` makes the store forget everything, as its restart would.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(live: &dyn Live, flush: impl Fn()) {
    messages_arrive_in_order_and_by_topic(live).await;
    a_slow_subscriber_learns_that_it_missed_something(live).await;
    buckets_hold_their_burst(live).await;
    presence_and_counters_expire(live).await;
    a_flush_loses_state_and_nothing_else(live, flush).await;
}

async fn next(messages: &mut crate::Subscription) -> Option<Message> {
    tokio::time::timeout(LIMIT, messages.next()).await.expect("arrives within the limit")
}

async fn messages_arrive_in_order_and_by_topic(live: &dyn Live) {
    live.publish("contract:a", Bytes::from_static(b"before")).await.expect("publishes to nobody");
    let mut first = live.subscribe("contract:a").await.expect("subscribes");
    let mut second = live.subscribe("contract:a").await.expect("subscribes");
    live.publish("contract:b", Bytes::from_static(b"elsewhere")).await.expect("publishes");
    for n in 0..10 {
        live.publish("contract:a", Bytes::from(format!("{n}"))).await.expect("publishes");
    }
    for n in 0..10 {
        let expected = Some(Message::Data(Bytes::from(format!("{n}"))));
        assert_eq!(next(&mut first).await, expected);
        assert_eq!(next(&mut second).await, expected);
    }
}

async fn a_slow_subscriber_learns_that_it_missed_something(live: &dyn Live) {
    let mut slow = live.subscribe("contract:slow").await.expect("subscribes");
    for n in 0..100_000u32 {
        live.publish("contract:slow", Bytes::from(n.to_string()))
            .await
            .expect("publishing never waits for a reader");
    }
    let last = Message::Data(Bytes::from_static(b"99999"));
    let (mut seen, mut missed) = (0, false);
    loop {
        match next(&mut slow).await {
            Some(message) if message == last => break,
            Some(Message::Data(_)) => seen += 1,
            Some(Message::Missed) | None => {
                missed = true;
                break;
            }
        }
    }
    assert!(missed || seen == 99_999, "a gap is said");
}

async fn buckets_hold_their_burst(live: &dyn Live) {
    let take = async |bucket: &str, quota| live.take(bucket, quota).await.expect("answers");
    let slow = Quota { burst: 3, per_second: 0.000_001 };
    for left in [2, 1, 0] {
        let taken = take("contract:slow-bucket", slow).await;
        assert!(taken.allowed && (taken.left - f64::from(left)).abs() < 0.1, "{taken:?}");
    }
    let refused = take("contract:slow-bucket", slow).await;
    assert!(!refused.allowed && refused.left < 0.1, "{refused:?}");
    assert!(take("contract:other-bucket", slow).await.allowed, "keys do not share");
    let fast = Quota { burst: 1, per_second: 1000.0 };
    assert!(take("contract:fast-bucket", fast).await.allowed);
    let refilled = async {
        while !take("contract:fast-bucket", fast).await.allowed {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, refilled).await.expect("refills");
}

async fn presence_and_counters_expire(live: &dyn Live) {
    live.touch("contract:viewers", "b", LONG).await.expect("touches");
    live.touch("contract:viewers", "a", LONG).await.expect("touches");
    live.touch("contract:viewers", "gone", Duration::from_millis(5)).await.expect("touches");
    let expired = async {
        while live.present("contract:viewers").await.expect("answers") != ["a", "b"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, expired).await.expect("a member leaves after its time");
    live.leave("contract:viewers", "a").await.expect("leaves");
    live.leave("contract:viewers", "who was never there").await.expect("leaves");
    live.leave("contract:nowhere", "a").await.expect("leaves");
    assert_eq!(live.present("contract:viewers").await.expect("answers"), ["b"]);
    assert_eq!(live.count("contract:counter", 2, LONG).await.expect("counts"), 2);
    assert_eq!(live.count("contract:counter", -5, LONG).await.expect("counts"), -3);
    assert_eq!(live.count("contract:short", 7, Duration::from_millis(1)).await.expect("counts"), 7);
    let restarted = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if live.count("contract:short", 1, Duration::from_millis(1)).await.expect("counts") == 1 {
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, restarted).await.expect("starts again after its time");
}

async fn a_flush_loses_state_and_nothing_else(live: &dyn Live, flush: impl Fn()) {
    let mut before = live.subscribe("contract:flush").await.expect("subscribes");
    flush();
    live.publish("contract:flush", Bytes::from_static(b"lost")).await.expect("publishes");
    // The subscription ends or goes on; what it never does is to hang in silence while messages flow.
    let told = tokio::time::timeout(LIMIT, before.next()).await.expect("ends or goes on");
    assert!(matches!(told, None | Some(Message::Missed | Message::Data(_))));
    let mut after = live.subscribe("contract:flush").await.expect("subscribes");
    live.publish("contract:flush", Bytes::from_static(b"seen")).await.expect("publishes");
    assert_eq!(next(&mut after).await, Some(Message::Data(Bytes::from_static(b"seen"))));
    assert_eq!(live.count("contract:counter", 1, LONG).await.expect("counts"), 1, "counters start again");
}
