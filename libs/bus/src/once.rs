//! Commands that happen once: the answer is stored with the effect, a repeat gets it back.

use contracts::{Actor, Refusal, Request, RequestError};
use eventstore::{Key, Store, Tx};
use serde::{Serialize, de::DeserializeOwned};

/// Why there is no answer. Failures are in the log already.
#[derive(Debug)]
pub struct Failure(pub RequestError);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal.into())
    }
}

impl From<eventstore::Error> for Failure {
    fn from(error: eventstore::Error) -> Self {
        Self(error.into())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        eventstore::Error::from(error).into()
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        eventstore::Error::from(error).into()
    }
}

/// A command's transaction with the key under which its answer will lie.
pub struct Once {
    /// The transaction of the effect.
    pub tx: Tx,
    key: String,
    digest: String,
    actor: Actor,
}

/// A command that has begun.
pub enum Begun<R> {
    /// For the first time.
    New(Once),
    /// It has happened before; this was the answer.
    Answered(R),
}

impl Once {
    /// Takes the locks and looks for an earlier answer.
    ///
    /// # Errors
    /// The key was used for another body, the same command is under way, or the database is away.
    pub async fn begin<R: DeserializeOwned>(
        store: &Store,
        request: &Request,
        locks: &[Key],
    ) -> Result<Begun<R>, Failure> {
        let key = match &request.idempotency_key {
            Some(key) => format!("key:{}:{key}", request.name),
            None => format!("id:{}", request.id),
        };
        let digest = eventstore::digest(&request.body);
        let mut tx = store.begin(locks).await?;
        match tx.answered(&key, &request.actor, &digest).await? {
            Some(answer) => {
                // Ends the transaction here and now: one that is dropped holds its locks a moment longer.
                tx.commit().await?;
                Ok(Begun::Answered(serde_json::from_value(answer)?))
            }
            None => Ok(Begun::New(Self { tx, key, digest, actor: request.actor.clone() })),
        }
    }

    /// Commits the effect with its answer.
    ///
    /// # Errors
    /// Nothing was committed, or it is not known whether it was: a repeat tells.
    pub async fn commit<R: Serialize>(mut self, answer: R) -> Result<R, Failure> {
        let value = serde_json::to_value(&answer)?;
        self.tx.record_answer(&self.key, &self.actor, &self.digest, &value).await?;
        self.tx.commit().await?;
        Ok(answer)
    }
}

/// Answers a request by its name: `answer!(self, request, { ask::Type => module::function, … })`. Each function takes
/// the service, the request and the decoded body, and fails with a [`Failure`].
#[macro_export]
macro_rules! answer {
    ($service:expr, $request:expr, { $($ask:ty => $handler:path),+ $(,)? }) => {
        match $request.name.as_str() {
            $(<$ask as $crate::Ask>::NAME => {
                $crate::route::<$ask, _, _>(&$request, |ask, request| async move {
                    $handler($service, request, ask).await.map_err(|failure| failure.0)
                })
                .await
            })+
            _ => Err($crate::unknown(&$request)),
        }
    };
}
