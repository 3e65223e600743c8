//! What a subscriber listens to. News say where to look; without them it is looked now and then, so that live state that is
//! away delays a subscription and ends none (reliability F26).

use crate::state::App;
use bytes::Bytes;
use futures::StreamExt;
use live::Message;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Changes within this time of the last that was told are told together.
const COALESCE: Duration = Duration::from_millis(50);
/// After so long without news the views are read anyway, and whoever cannot listen tries again.
const QUIET: Duration = Duration::from_secs(5);

/// What came in quick succession; nothing: it was silent.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) messages: Vec<Bytes>,
    /// There was more, which nobody heard.
    pub(super) missed: bool,
}

impl News {
    fn take(&mut self, message: Message) {
        match message {
            Message::Data(data) => self.messages.push(data),
            Message::Missed => self.missed = true,
        }
    }

    fn lost() -> Self {
        Self { messages: Vec::new(), missed: true }
    }
}

/// A topic, listened to whenever that is possible.
pub(super) struct Topic {
    app: App,
    name: String,
    messages: Option<live::Subscription>,
    /// Nothing is told before: the first change after a quiet time goes at once.
    next: Instant,
}

impl Topic {
    pub(super) async fn of(app: &App, name: &str) -> Self {
        let mut topic =
            Self { app: app.clone(), name: name.to_owned(), messages: None, next: Instant::now() };
        topic.listen().await;
        topic
    }

    async fn listen(&mut self) {
        match self.app.live.subscribe(&self.name).await {
            Ok(messages) => self.messages = Some(messages),
            Err(error) => tracing::debug!(topic = self.name, %error, "views are read now and then"),
        }
    }

    /// Waits for a message, or for long silence; gathers what comes in quick succession.
    pub(super) async fn news(&mut self) -> News {
        let Some(messages) = &mut self.messages else {
            sleep(QUIET).await;
            self.listen().await;
            return News::lost();
        };
        let mut news = News::default();
        match timeout(QUIET, messages.next()).await {
            Ok(Some(message)) => news.take(message),
            Ok(None) => {
                self.messages = None;
                self.listen().await;
                return News::lost();
            }
            Err(_) => return news,
        }
        let end = self.next.max(Instant::now());
        while let Ok(Some(message)) = timeout_at(end, messages.next()).await {
            news.take(message);
        }
        self.next = end + COALESCE;
        news
    }
}
