//! One reader of each source's log for all groups of a process.
//!
//! Every commit wakes every group of its source. If each of them read the log by itself, a commit would cost as many
//! reads as there are groups, all with the same rows; so they share the newest of them here.

use contracts::Envelope;
use eventstore::{Page, Position, Result, read_after};
use sqlx::PgPool;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// Events read at once.
pub(crate) const PAGE: u32 = 256;
/// Newest events that are kept for slower groups.
const KEPT: usize = 512;
/// Between two reads for events that wait for older transactions.
const SETTLE: Duration = Duration::from_millis(1);

/// What a reader gets.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Events in position order.
    pub(crate) events: Vec<(Position, Arc<Envelope>)>,
    /// More may follow at once.
    pub(crate) more: bool,
    /// Committed events follow that may be read as soon as older transactions end.
    pub(crate) unsettled: bool,
}

impl From<Page> for Shared {
    fn from(page: Page) -> Self {
        let events = page.events.into_iter().map(|(at, event)| (at, Arc::new(event))).collect();
        Self { events, more: page.more, unsettled: page.unsettled }
    }
}

/// The end of a log as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// All events after this position and up to `head` are in `events`.
    floor: Position,
    head: Position,
    events: VecDeque<(Position, Arc<Envelope>)>,
    /// The wake-up that the last read has seen, and when that was.
    tick: Option<u64>,
    read: Option<Instant>,
    unsettled: bool,
}

impl Tail {
    /// Events after a position. `tick` is the count of wake-ups that the reader knows of: what was read since then is
    /// not read again, unless `anew` asks for it.
    pub(crate) async fn after(
        &self,
        pool: &PgPool,
        source: &str,
        after: Position,
        tick: u64,
        anew: bool,
    ) -> Result<Shared> {
        let mut known = self.0.lock().await;
        if after > known.head || known.read.is_none() {
            // Nobody here is as far: from now on this is the end.
            *known = Known { floor: after, head: after, ..Known::default() };
        } else if after < known.floor {
            drop(known);
            // One that catches up reads for itself.
            return Ok(read_after(pool, source, after, PAGE).await?.into());
        }
        let from = known.events.partition_point(|(at, _)| *at <= after);
        if from < known.events.len() {
            let events = known.events.iter().skip(from).take(PAGE as usize).cloned().collect();
            return Ok(Shared { events, more: true, unsettled: false });
        }
        let fresh = known.tick.is_some_and(|seen| seen >= tick);
        let settling = known.unsettled && known.read.is_some_and(|read| read.elapsed() >= SETTLE);
        if fresh && !settling && !anew {
            return Ok(Shared { unsettled: known.unsettled, ..Shared::default() });
        }
        let page = Shared::from(read_after(pool, source, known.head, PAGE).await?);
        known.tick = Some(tick);
        known.read = Some(Instant::now());
        known.unsettled = page.unsettled;
        if let Some((head, _)) = page.events.last() {
            known.head = *head;
            known.events.extend(page.events.iter().cloned());
            while known.events.len() > KEPT {
                if let Some((at, _)) = known.events.pop_front() {
                    known.floor = at;
                }
            }
        }
        Ok(page)
    }
}
