//! Texts that may be too large for a message.

use crate::{error::Fail, state::App};
use axum::http::StatusCode;
use contracts::text::Text;

impl App {
    /// Gives a text the form in which it rides in a request.
    pub async fn send(&self, text: String) -> Result<Text, Fail> {
        blobs::text::send(self.blobs.as_ref(), text).await.map_err(failed)
    }

    /// Reads a text of an answer.
    pub async fn receive(&self, text: Text) -> Result<String, Fail> {
        blobs::text::receive(self.blobs.as_ref(), text).await.map_err(failed)
    }
}

fn failed(error: blobs::Error) -> Fail {
    tracing::error!(error = &error as &dyn std::error::Error, "a text cannot be handed over");
    Fail::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "dependency_unavailable",
        "the blob store does not answer; try again",
    )
}
