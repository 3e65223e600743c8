//! Requests of other services.

use crate::State;
use async_trait::async_trait;
use bus::{Responder, failed, route, unknown};
use contracts::{
    Request, RequestError,
    request::Ask,
    test_results::{ListTests, TestPage, TestRecord},
};
use serde_json::Value;
use std::sync::Arc;

const MAX_PAGE: u32 = 500;
/// Bytes of texts in one answer: a message has at most 256 KiB.
const PAGE_BYTES: usize = 128 << 10;
/// A test's message in a list is cut here.
const MESSAGE: usize = 16 << 10;

pub(crate) struct Answers(pub(crate) Arc<State>);

#[async_trait]
impl Responder for Answers {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        match req.name.as_str() {
            ListTests::NAME => {
                route::<ListTests, _, _>(&req, |ask, _| async move {
                    list(&self.0, ask).await.map_err(failed(crate::NAME))
                })
                .await
            }
            _ => Err(unknown(&req)),
        }
    }
}

type Row = (i32, String, String, String, String, f64, String);

async fn list(state: &State, ask: ListTests) -> sqlx::Result<TestPage> {
    let pool = state.store.pool();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT index, classname, file, name, result, run_time, message FROM test_results.tests \
         WHERE job_id = $1 ORDER BY index, seq OFFSET $2 LIMIT $3",
    )
    .bind(ask.job_id.uuid())
    .bind(i64::try_from(ask.offset).unwrap_or(i64::MAX))
    .bind(i64::from(ask.limit.clamp(1, MAX_PAGE)))
    .fetch_all(pool)
    .await?;
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM test_results.tests WHERE job_id = $1")
        .bind(ask.job_id.uuid())
        .fetch_one(pool)
        .await?;
    let problems: Vec<String> = sqlx::query_scalar(
        "SELECT unnest(problems) FROM test_results.reports WHERE job_id = $1 ORDER BY index LIMIT 100",
    )
    .bind(ask.job_id.uuid())
    .fetch_all(pool)
    .await?;
    let (mut items, mut bytes) = (Vec::new(), 0);
    for (index, classname, file, name, result, run_time, mut message) in rows {
        message.truncate(message.floor_char_boundary(MESSAGE));
        // Escapes may double a text.
        bytes += 2 * (classname.len() + file.len() + name.len() + message.len()) + 160;
        if bytes > PAGE_BYTES && !items.is_empty() {
            break;
        }
        let index = u32::try_from(index).unwrap_or_default();
        items.push(TestRecord { index, classname, file, name, result, run_time, message });
    }
    Ok(TestPage { items, total: u64::try_from(total).unwrap_or_default(), problems })
}
