//! How a group gets its messages through a broker: from the source's log until it has caught up, then from its
//! queues, and from the log again wherever a delivery does not follow the one before it.

use crate::{
    broker::{Broker, BrokerError, Delivery, LaneQueue},
    group::{Runner, ops_channel},
    lane::{Item, LaneError, lane_of},
};
use contracts::Envelope;
use eventstore::Position;
use futures::{StreamExt, future::BoxFuture, stream::SelectAll};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// How often the log is looked at although nothing came: a broker that lost messages delays them by at most this.
const CHECK: Duration = Duration::from_secs(10);
/// How long to wait for a broker that is away.
const AWAY: Duration = Duration::from_secs(1);

/// A lane as its reader sees it.
pub(crate) struct LaneEnd {
    /// Where its messages go.
    pub(crate) items: mpsc::Sender<Item>,
    /// How far it has committed.
    pub(crate) committed: watch::Receiver<Position>,
    /// The last message that it was given.
    pub(crate) given: Position,
}

/// Deliveries whose effect is not committed yet.
#[derive(Default)]
struct Unacknowledged(VecDeque<(Position, BoxFuture<'static, ()>)>);

impl Unacknowledged {
    async fn settle(&mut self, committed: Position) {
        while self.0.front().is_some_and(|(at, _)| *at <= committed) {
            if let Some((_, acknowledge)) = self.0.pop_front() {
                acknowledge.await;
            }
        }
    }
}

impl Runner {
    /// Feeds the lanes through a broker until `stop`.
    pub(crate) async fn feed(
        &self,
        broker: &dyn Broker,
        mut lanes: BTreeMap<i32, LaneEnd>,
        ops: i64,
        stop: &CancellationToken,
    ) -> Result<(), LaneError> {
        let Some(mut members) = self.bus.members(&self.store) else { return Ok(()) };
        let mut operated = self.bus.woken(&ops_channel(self.group.name(), self.source));
        let taken: BTreeSet<i32> = lanes.keys().copied().collect();
        let mut open: BTreeMap<i32, Unacknowledged> =
            lanes.keys().map(|lane| (*lane, Unacknowledged::default())).collect();
        loop {
            // The queues first: what is published from now on is in them, what was published before is in the log.
            let queues = self.queues(broker, lanes.keys().copied()).await;
            if let Err(error) = &queues {
                tracing::warn!(group = self.group.name(), source = self.source, %error, "the log is read instead");
            }
            let away = queues.is_err();
            let mut deliveries = queues.unwrap_or_default();
            self.catch_up(&mut lanes, stop).await?;
            let mut check = Instant::now() + if away { AWAY } else { CHECK };
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = members.moved(self.group.name(), self.source, self.lanes, &taken) => {
                        return Err(LaneError::Overtaken);
                    }
                    _ = operated.changed() => return Err(LaneError::Overtaken),
                    delivery = deliveries.next(), if !deliveries.is_empty() => match delivery {
                        Some((lane, Ok(delivery))) => {
                            check = Instant::now() + CHECK;
                            self.deliver(&mut lanes, &mut open, lane, delivery, stop).await?;
                        }
                        Some((_, Err(error))) => {
                            tracing::warn!(group = self.group.name(), source = self.source, %error, "a queue is interrupted");
                            break;
                        }
                        None => break,
                    },
                    () = any_commit(&mut lanes) => {
                        for (lane, end) in &mut lanes {
                            let committed = *end.committed.borrow_and_update();
                            if let Some(open) = open.get_mut(lane) {
                                open.settle(committed).await;
                            }
                        }
                    }
                    () = tokio::time::sleep_until(check) => {
                        if away {
                            break;
                        }
                        self.confirm(&lanes, ops).await?;
                        self.catch_up(&mut lanes, stop).await?;
                        check = Instant::now() + CHECK;
                    }
                }
            }
            if stop.is_cancelled() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn queues(
        &self,
        broker: &dyn Broker,
        lanes: impl Iterator<Item = i32>,
    ) -> Result<
        SelectAll<futures::stream::BoxStream<'static, (i32, Result<Delivery, BrokerError>)>>,
        BrokerError,
    > {
        let mut all = SelectAll::new();
        for lane in lanes {
            let queue = LaneQueue {
                group: self.group.name(),
                source: self.source,
                lane: (self.lanes > 1).then_some(lane),
                kinds: self.group.wants().to_vec(),
            };
            let ended = futures::stream::once(async {
                Err(BrokerError::Unavailable("the queue's consumer was canceled".to_owned()))
            });
            let deliveries = broker.receive(&queue).await?;
            all.push(deliveries.chain(ended).map(move |delivery| (lane, delivery)).boxed());
        }
        Ok(all)
    }

    async fn deliver(
        &self,
        lanes: &mut BTreeMap<i32, LaneEnd>,
        open: &mut BTreeMap<i32, Unacknowledged>,
        lane: i32,
        delivery: Delivery,
        stop: &CancellationToken,
    ) -> Result<(), LaneError> {
        let Delivery { at, after, message, acknowledge } = delivery;
        let wanted = self.wants(&message);
        let Some(end) = lanes.get_mut(&lane) else { return Ok(()) };
        if at > end.given {
            if after.is_some_and(|after| after <= end.given) {
                self.give(end, at, message, stop).await;
            } else {
                // Something between did not come this way. What the relay published, the log shows.
                metrics::counter!("gantry.bus.gaps", "group" => self.group.name(), "source" => self.source)
                    .increment(1);
                self.catch_up(lanes, stop).await?;
            }
        }
        match (open.get_mut(&lane), lanes.get(&lane)) {
            (Some(open), Some(end)) if wanted && at <= end.given => {
                open.0.push_back((at, acknowledge));
                let committed = *end.committed.borrow();
                open.settle(committed).await;
            }
            // The log will show it again, or nobody here wants it.
            _ => acknowledge.await,
        }
        Ok(())
    }

    /// Gives a lane its next event.
    async fn give(&self, end: &mut LaneEnd, at: Position, message: Envelope, stop: &CancellationToken) {
        end.given = at;
        if !self.wants(&message) {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            sent = end.items.send(Item::Message(at, Box::new(message))) => if sent.is_err() {
                // A lane that ended says why itself.
                std::future::pending::<()>().await;
            },
        }
    }

    /// Reads what the group wants in the log, from where the slowest lane stands until there is no more.
    async fn catch_up(
        &self,
        lanes: &mut BTreeMap<i32, LaneEnd>,
        stop: &CancellationToken,
    ) -> Result<(), LaneError> {
        let Some(mut position) = lanes.values().map(|end| end.given).min() else { return Ok(()) };
        let mut settle = Duration::from_millis(1);
        while !stop.is_cancelled() {
            let page = self.page(position).await?;
            for (at, message) in page.events {
                let lane = lane_of(&message.aggregate.kind, message.aggregate.id, self.lanes);
                if let Some(end) = lanes.get_mut(&lane).filter(|end| end.given < at) {
                    self.give(end, at, message, stop).await;
                }
            }
            position = page.end;
            if !page.more && !page.unsettled {
                break;
            }
            if page.unsettled {
                sleep(settle).await;
                settle = (settle * 2).min(Duration::from_millis(25));
            }
        }
        for end in lanes.values_mut() {
            if position > end.given {
                end.given = position;
            }
            // So that a restart need not read what nobody wanted. A full lane has work that moves its cursor.
            if end.given > *end.committed.borrow() {
                let _ = end.items.try_send(Item::Mark(end.given));
            }
        }
        Ok(())
    }
}

/// Returns when one of the lanes has committed.
async fn any_commit(lanes: &mut BTreeMap<i32, LaneEnd>) {
    if lanes.is_empty() {
        return std::future::pending().await;
    }
    let changes = lanes.values_mut().map(|end| Box::pin(end.committed.changed()));
    match futures::future::select_all(changes).await.0 {
        Ok(()) => {}
        // A lane that ended says why itself.
        Err(_) => std::future::pending().await,
    }
}
