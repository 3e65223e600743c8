//! Live updates. A message on the bus says that something changed; what is sent is read from the views, with
//! the caller's rights, so nothing is lost by losing a message.

use super::{Outcome, app, caller, parse, topic::Topic, types::Pipeline};
use crate::{
    auth::Caller,
    error::Fail,
    logs,
    state::{App, VIEWS_TOPIC},
    store::PipelineRow,
    view,
};
use async_graphql::{Context, ID, SimpleObject, Subscription as GraphSubscription};
use chrono::Utc;
use futures::{StreamExt, stream::BoxStream};
use ids::{OrgId, PipelineId, Timestamp};
use std::collections::BTreeSet;

/// A view is written up to so much later than it says: a change is told again rather than not at all.
const OVERLAP: chrono::TimeDelta = chrono::TimeDelta::seconds(10);
/// Pipelines that are told after a break.
const MISSED: i64 = 500;

/// A piece of a step's output.
#[derive(SimpleObject)]
pub struct LogPiece {
    /// Offset of its first byte.
    offset: i64,
    /// Offset after it: where to go on after a break.
    next: i64,
    text: String,
    /// Whether it was the last.
    end: bool,
}

/// Live updates.
pub struct Subscription;

fn offset(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The pipelines that a batch of messages names.
fn named(messages: &[bytes::Bytes]) -> BTreeSet<PipelineId> {
    messages
        .iter()
        .filter_map(|data| std::str::from_utf8(data).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect()
}

async fn changed(
    app: &App,
    caller: &Caller,
    ids: BTreeSet<PipelineId>,
    project: Option<ids::ProjectId>,
) -> Vec<Outcome<Pipeline>> {
    let mut found = Vec::new();
    for id in ids {
        // One that the caller may not see, or that the view does not have yet, is not there.
        if let Ok(row) = view::pipeline(app, caller, id).await
            && project.is_none_or(|project| project.uuid() == row.project_id)
        {
            found.push(Ok(Pipeline(row)));
        }
    }
    found
}

/// What changed since a moment, if that is not too much to be told one by one.
async fn missed(
    app: &App,
    caller: &Caller,
    project: Option<ids::ProjectId>,
    since: Timestamp,
) -> Result<Vec<PipelineRow>, Fail> {
    let orgs: Vec<_> = match project {
        Some(_) => Vec::new(),
        None => view::orgs(app, caller).await?.iter().map(|org| org.id.uuid()).collect(),
    };
    let project = project.map(|project| project.uuid());
    let rows = app.views.pipelines_changed_since(project, &orgs, since - OVERLAP, MISSED + 1).await?;
    if i64::try_from(rows.len()).is_ok_and(|n| n > MISSED) {
        let message = format!("more than {MISSED} pipelines changed since then: read the list anew");
        return Err(Fail::new(http::StatusCode::GONE, "too_much_missed", message));
    }
    Ok(rows)
}

/// Somebody who follows the pipelines of a project, or of all.
struct Listener {
    app: App,
    caller: Caller,
    project: Option<ids::ProjectId>,
    topic: Topic,
    /// Up to then all was heard.
    heard: Timestamp,
    /// From then on something was not, and is still to be told.
    owed: Option<Timestamp>,
}

impl Listener {
    async fn next(&mut self) -> Vec<Outcome<Pipeline>> {
        let now = Utc::now();
        let news = self.topic.news().await;
        if news.missed {
            self.owed.get_or_insert(self.heard);
        }
        self.heard = now;
        let Some(since) = self.owed else {
            return changed(&self.app, &self.caller, named(&news.messages), self.project).await;
        };
        match missed(&self.app, &self.caller, self.project, since).await {
            // The views cannot be read now: what is owed stays owed.
            Err(fail) if fail.status == http::StatusCode::SERVICE_UNAVAILABLE => Vec::new(),
            told => {
                self.owed = None;
                match told {
                    Ok(rows) => rows.into_iter().map(|row| Ok(Pipeline(row))).collect(),
                    Err(fail) => vec![Err(fail.into())],
                }
            }
        }
    }
}

#[GraphSubscription]
impl Subscription {
    /// A pipeline: now, and whenever it, a workflow, a job or a step of it changed.
    async fn pipeline(
        &self,
        ctx: &Context<'_>,
        id: ID,
    ) -> async_graphql::Result<BoxStream<'static, Outcome<Pipeline>>> {
        let (app, caller) = (app(ctx).clone(), caller(ctx)?.clone());
        let id = parse::<PipelineId>(&id, "Pipeline")?;
        // First listen, then look: nothing falls between.
        let topic = Topic::of(&app, &live::pipeline_topic(id)).await;
        let first = view::pipeline(&app, &caller, id).await?;
        let later =
            futures::stream::unfold((app, caller, topic), move |(app, caller, mut topic)| async move {
                topic.news().await;
                let row = view::pipeline(&app, &caller, id).await.map(Pipeline).map_err(Into::into);
                Some((row, (app, caller, topic)))
            });
        Ok(futures::stream::once(async { Ok(Pipeline(first)) }).chain(later).boxed())
    }

    /// Pipelines of a project, or of all, as they change. With `since`, the newest `changedAt` that the client has, first
    /// what changed after that: after a break nothing is missed, and a little comes twice.
    async fn pipelines(
        &self,
        ctx: &Context<'_>,
        project_slug: Option<String>,
        since: Option<Timestamp>,
    ) -> async_graphql::Result<BoxStream<'static, Outcome<Pipeline>>> {
        let (app, caller) = (app(ctx).clone(), caller(ctx)?.clone());
        let topic = Topic::of(&app, VIEWS_TOPIC).await;
        let project = match project_slug {
            Some(slug) => Some(view::project(&app, &caller, &slug).await?.id),
            None => None,
        };
        // First listen, then look: nothing falls between.
        let missed = match since {
            Some(since) => missed(&app, &caller, project, since).await?,
            None => Vec::new(),
        };
        let listener = Listener { app, caller, project, topic, heard: Utc::now(), owed: None };
        let batches = futures::stream::unfold(listener, |mut listener| async move {
            let found = listener.next().await;
            Some((futures::stream::iter(found), listener))
        });
        Ok(futures::stream::iter(missed.into_iter().map(|row| Ok(Pipeline(row))))
            .chain(batches.flatten())
            .boxed())
    }

    /// A step's output from an offset on, until it is complete.
    async fn log(
        &self,
        ctx: &Context<'_>,
        step_id: ID,
        #[graphql(default)] offset: i64,
    ) -> async_graphql::Result<BoxStream<'static, Outcome<LogPiece>>> {
        let (app, caller) = (app(ctx).clone(), caller(ctx)?.clone());
        let place = logs::place(&app, &caller, &step_id).await?;
        let job = view::job(&app, &caller, place.job_id).await?;
        let from = u64::try_from(offset).unwrap_or(0);
        let pieces = logs::follow(app, caller, place.step.step_id, OrgId(job.org_id), from);
        Ok(pieces
            .map(|piece| {
                let piece = piece?;
                Ok(LogPiece {
                    offset: self::offset(piece.offset),
                    next: self::offset(piece.next),
                    text: piece.text(),
                    end: piece.end,
                })
            })
            .boxed())
    }
}
