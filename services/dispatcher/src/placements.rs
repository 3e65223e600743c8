//! What compute says of tasks whose agents have not come.

use crate::state::State;
use contracts::dispatcher::{PlacementNews, PlacementReport};
use uuid::Uuid;

/// Longest reason that is kept, in characters.
const LONGEST: usize = 500;

/// Writes down why tasks are not placed, and gives those the time to be: a task that waits for a machine has not lost its
/// agent. One whose agent ended unclaimed is queued again at once, as if its time had run out. A task that is claimed, or
/// queued with another epoch, is not touched.
pub async fn report(state: &State, reports: Vec<PlacementReport>) -> anyhow::Result<()> {
    let (mut waits, mut ended) =
        (<(Vec<Uuid>, Vec<i64>, Vec<String>)>::default(), <(Vec<Uuid>, Vec<i64>)>::default());
    for PlacementReport { task_id, epoch, news } in reports {
        match news {
            PlacementNews::Waits { why } => {
                waits.0.push(task_id.uuid());
                waits.1.push(epoch);
                waits.2.push(why.chars().take(LONGEST).collect());
            }
            PlacementNews::Ended => {
                ended.0.push(task_id.uuid());
                ended.1.push(epoch);
            }
        }
    }
    if !waits.0.is_empty() {
        sqlx::query(
            "UPDATE dispatcher.tasks t SET placement = w.why, \
                 next_action_at = greatest(t.next_action_at, clock_timestamp() + $4) \
             FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS w(task_id, epoch, why) \
             WHERE t.task_id = w.task_id AND t.epoch = w.epoch AND t.state = 'queued'",
        )
        .bind(&waits.0)
        .bind(&waits.1)
        .bind(&waits.2)
        .bind(state.config.claim_timeout)
        .execute(state.store.pool())
        .await?;
    }
    if !ended.0.is_empty() {
        let due = sqlx::query(
            "UPDATE dispatcher.tasks t SET next_action_at = clock_timestamp() \
             FROM unnest($1::uuid[], $2::bigint[]) AS e(task_id, epoch) \
             WHERE t.task_id = e.task_id AND t.epoch = e.epoch AND t.state = 'queued'",
        )
        .bind(&ended.0)
        .bind(&ended.1)
        .execute(state.store.pool())
        .await?;
        if due.rows_affected() > 0 {
            state.due.notify_one();
        }
    }
    Ok(())
}
