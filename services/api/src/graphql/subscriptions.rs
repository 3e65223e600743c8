//! Live updates. A message on the bus says that something changed; what is sent is read from the views, with
//! the caller's rights, so nothing is lost by losing a message.

use super::{Outcome, app, caller, parse, types::Pipeline};
use crate::{
    auth::Caller,
    error::Fail,
    logs,
    state::{App, VIEWS_TOPIC},
    store::PipelineRow,
    view,
};
use async_graphql::{Context, ID, SimpleObject, Subscription as GraphSubscription};
use futures::{StreamExt, stream::BoxStream};
use ids::{OrgId, PipelineId, Timestamp};
use live::Message;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// Changes within this time of the last that was told are told together.
const COALESCE: Duration = Duration::from_millis(50);
/// After so long without news the views are read anyway.
const QUIET: Duration = Duration::from_secs(5);

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

/// What a subscriber listens to.
struct Topic {
    messages: BoxStream<'static, Message>,
    /// Nothing is told before: the first change after a quiet time goes at once.
    next: Instant,
}

impl Topic {
    async fn of(app: &App, name: &str) -> Result<Self, Fail> {
        let messages = app.live.subscribe(name).await.map_err(|error| unavailable(&error))?;
        Ok(Self { messages, next: Instant::now() })
    }

    /// Waits for a message, or for long silence; gathers what comes in quick succession. `None` among the messages:
    /// some were missed, or it was silence.
    async fn news(&mut self) -> Option<Vec<Option<bytes::Bytes>>> {
        let take = |message| match message {
            Message::Data(data) => Some(data),
            Message::Missed => None,
        };
        let mut found = match timeout(QUIET, self.messages.next()).await {
            Ok(Some(message)) => vec![take(message)],
            Ok(None) => return None,
            Err(_) => return Some(vec![None]),
        };
        let end = self.next.max(Instant::now());
        while let Ok(Some(message)) = timeout_at(end, self.messages.next()).await {
            found.push(take(message));
        }
        self.next = end + COALESCE;
        Some(found)
    }
}

fn unavailable(error: &live::Error) -> Fail {
    Fail::new(http::StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", error.to_string())
}

fn offset(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The pipelines that a batch of messages names.
fn named(messages: &[Option<bytes::Bytes>]) -> BTreeSet<PipelineId> {
    messages
        .iter()
        .flatten()
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
        let topic = Topic::of(&app, &live::pipeline_topic(id)).await?;
        let first = view::pipeline(&app, &caller, id).await?;
        let later =
            futures::stream::unfold((app, caller, topic), move |(app, caller, mut topic)| async move {
                topic.news().await?;
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
        let topic = Topic::of(&app, VIEWS_TOPIC).await?;
        let project = match project_slug {
            Some(slug) => Some(view::project(&app, &caller, &slug).await?.id),
            None => None,
        };
        // First listen, then look: nothing falls between.
        let missed = match since {
            Some(since) => missed(&app, &caller, project, since).await?,
            None => Vec::new(),
        };
        let batches =
            futures::stream::unfold((app, caller, topic), move |(app, caller, mut topic)| async move {
                let messages = topic.news().await?;
                let found = changed(&app, &caller, named(&messages), project).await;
                Some((futures::stream::iter(found), (app, caller, topic)))
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
