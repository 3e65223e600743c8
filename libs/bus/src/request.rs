//! Ask the owner and wait.

use crate::{
    Bus, Inner, MESSAGE_LIMIT,
    broker::{Answer, Broker, BrokerError},
    detour,
};
use async_trait::async_trait;
use contracts::{Actor, Refusal, Request, RequestError, request::Ask};
use futures::FutureExt;
use ids::MessageId;
use serde_json::Value;
use spans::{Kind, Name, Open, Span};
use std::{
    any::Any,
    fmt::Display,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long a request without options may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an asker waits for a service of the same process that is still starting.
const APPEARS: Duration = Duration::from_millis(500);
/// Requests that one service executes at a time; the others wait.
const AT_A_TIME: usize = 64;

/// Answers the requests to one service.
#[async_trait]
pub trait Responder: Send + Sync {
    /// Executes a request. Use [`route`] to decode and encode.
    async fn respond(&self, req: Request) -> Result<Value, RequestError>;
}

/// How to ask.
#[derive(Clone, Debug)]
pub struct AskOptions {
    /// Command id, to repeat a command; `None`: a fresh one.
    pub id: Option<MessageId>,
    /// How long to wait at most. A request past it is not executed.
    pub deadline: Duration,
    /// The client's `Idempotency-Key`.
    pub idempotency_key: Option<String>,
}

impl Default for AskOptions {
    fn default() -> Self {
        Self { id: None, deadline: DEADLINE, idempotency_key: None }
    }
}

#[derive(Clone)]
pub(crate) struct Slot {
    responder: Arc<dyn Responder>,
    permits: Arc<Semaphore>,
    /// A query may wait for it in the database.
    pub(crate) asked: Arc<Notify>,
}

impl Bus {
    /// Registers the one responder of a service; a second takes the place of the first.
    pub fn respond(&self, service: &'static str, responder: Arc<dyn Responder>) {
        let permits = Arc::new(Semaphore::new(AT_A_TIME));
        let slot = Slot { responder, permits, asked: Arc::default() };
        if let Some(broker) = self.broker() {
            tokio::spawn(detour::serve(Arc::downgrade(&self.0), service, slot.clone()));
            let (bus, leaving) = (Arc::downgrade(&self.0), self.0.leaving.clone());
            self.0.parting.spawn(serve(bus, broker, service, slot.clone(), leaving));
        }
        self.0.responders.send_modify(|all| {
            all.insert(service, slot);
        });
    }

    /// Asks the owner, for at most 5 s.
    ///
    /// # Errors
    /// It refused, failed, or did not answer.
    pub async fn ask<A: Ask>(&self, actor: &Actor, ask: &A) -> Result<A::Reply, RequestError> {
        self.ask_with(AskOptions::default(), actor, ask).await
    }

    /// Asks the owner.
    ///
    /// # Errors
    /// It refused, failed, or did not answer in time.
    pub async fn ask_with<A: Ask>(
        &self,
        opts: AskOptions,
        actor: &Actor,
        ask: &A,
    ) -> Result<A::Reply, RequestError> {
        self.admission().check_request(A::NAME)?;
        let until = Instant::now() + opts.deadline;
        let body = serde_json::to_value(ask).map_err(failed(A::SERVICE))?;
        let request = Request {
            id: opts.id.unwrap_or_else(MessageId::new),
            service: A::SERVICE.to_owned(),
            name: A::NAME.to_owned(),
            deadline: chrono::Utc::now()
                + chrono::TimeDelta::from_std(opts.deadline).unwrap_or(chrono::TimeDelta::MAX / 4),
            actor: actor.clone(),
            idempotency_key: opts.idempotency_key,
            trace: eventstore::trace::current().map(|trace| trace.to_string()),
            body,
        };
        let result = self.exchange::<A>(&request, until).await;
        metrics::counter!(
            "gantry.bus.requests", "service" => A::SERVICE, "name" => A::NAME, "outcome" => outcome(&result)
        )
        .increment(1);
        let value = result?;
        serde_json::from_value(value).map_err(failed(A::SERVICE))
    }

    /// The request goes encoded, and so does the answer: what works here works over a broker.
    async fn exchange<A: Ask>(&self, request: &Request, until: Instant) -> Result<Value, RequestError> {
        let service = A::SERVICE;
        let encoded = serde_json::to_vec(request).map_err(failed(service))?;
        fits(service, encoded.len())?;
        let here = self.0.responders.borrow().get(service).cloned();
        let encoded = match (here, self.broker()) {
            (Some(slot), _) => slot.execute(service, encoded, until).await?,
            (None, Some(broker)) => {
                let asked = timeout_at(until, broker.request(service, &encoded, until)).await;
                match asked.unwrap_or(Err(BrokerError::Deadline)) {
                    Err(BrokerError::Unavailable(reason)) if A::IDEMPOTENT => {
                        tracing::debug!(service, reason, "a request goes through the database");
                        detour::ask(self, service, &encoded, until).await?
                    }
                    asked => asked.map_err(|error| away(service, error))?,
                }
            }
            (None, None) => self.slot(service, until).await?.execute(service, encoded, until).await?,
        };
        fits(service, encoded.len())?;
        serde_json::from_slice::<Result<Value, RequestError>>(&encoded).map_err(failed(service))?
    }

    /// The service's responder; waits a moment for one that is starting.
    async fn slot(&self, service: &'static str, until: Instant) -> Result<Slot, RequestError> {
        let mut responders = self.0.responders.subscribe();
        let found = timeout_at(
            until.min(Instant::now() + APPEARS),
            responders.wait_for(|all| all.contains_key(service)),
        )
        .await
        .ok()
        .and_then(|seen| seen.ok().and_then(|all| all.get(service).cloned()));
        found.ok_or_else(|| RequestError::NoResponder { service: service.to_owned() })
    }
}

impl Slot {
    /// Executes an encoded request and encodes the answer.
    async fn execute(
        &self,
        service: &'static str,
        encoded: Vec<u8>,
        until: Instant,
    ) -> Result<Vec<u8>, RequestError> {
        let slot = self.clone();
        let work = async move {
            let permit = timeout_at(until, Arc::clone(&slot.permits).acquire_owned()).await;
            // Nobody waits for the answer any more: the command must not be executed.
            let (Ok(Ok(_permit)), true) = (permit, Instant::now() < until) else {
                return Err(RequestError::Deadline { service: service.to_owned() });
            };
            let mut request: Request = serde_json::from_slice(&encoded).map_err(failed(service))?;
            // By this machine's clock, which need not be the asker's.
            request.deadline = chrono::Utc::now() + until.saturating_duration_since(Instant::now());
            let trace = request.trace.as_deref().and_then(|trace| trace.parse().ok());
            let name = Name::chosen(&request.name);
            let span = trace.and_then(|trace| Span::begin(Some(trace), service, Kind::Server, name));
            let span = Open::new(span);
            let answer = slot.responder.respond(request);
            let answer = eventstore::trace::within(span.context().or(trace), answer).await;
            span.end(matches!(&answer, Err(error) if !matches!(error, RequestError::Refused(_))));
            answer
        };
        // A task of its own: an asker that goes away does not stop a command half-way, and a panic stays there.
        let answer = match timeout_at(until, tokio::spawn(work)).await {
            Err(_) => return Err(RequestError::Deadline { service: service.to_owned() }),
            Ok(Err(error)) => return Err(failed(service)(error)),
            Ok(Ok(answer)) => answer,
        };
        serde_json::to_vec(&answer.map_err(|error| named(service, error))).map_err(failed(service))
    }

    /// The same for a request of another process, which waits for so long: whatever happens is an answer.
    pub(crate) async fn answer(&self, service: &'static str, encoded: Vec<u8>, left: Duration) -> Vec<u8> {
        let until = Instant::now() + left;
        let answer = async {
            let answer = self.execute(service, encoded, until).await?;
            fits(service, answer.len())?;
            Ok::<_, RequestError>(answer)
        };
        let answer = answer.await;
        metrics::counter!("gantry.bus.answered", "service" => service).increment(1);
        match answer {
            Ok(answer) => answer,
            // An error has no content that could not be encoded.
            Err(error) => serde_json::to_vec(&Err::<Value, _>(error)).unwrap_or_default(),
        }
    }
}

/// Answers the requests of other processes for as long as the bus lives and does not leave.
async fn serve(
    bus: Weak<Inner>,
    broker: Arc<dyn Broker>,
    service: &'static str,
    slot: Slot,
    leaving: CancellationToken,
) {
    let answer: Answer = Arc::new(move |request, left| {
        let slot = slot.clone();
        async move { slot.answer(service, request, left).await }.boxed()
    });
    let gone = async {
        while Weak::strong_count(&bus) > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::pin!(gone);
    loop {
        let ended = tokio::select! {
            () = &mut gone => return,
            ended = broker.serve(service, Arc::clone(&answer), leaving.clone()) => ended,
        };
        if leaving.is_cancelled() {
            return;
        }
        if let Err(error) = ended {
            tracing::warn!(service, %error, "requests of other processes are not answered");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn away(service: &str, error: BrokerError) -> RequestError {
    match error {
        BrokerError::Deadline => RequestError::Deadline { service: service.to_owned() },
        BrokerError::NoResponder => RequestError::NoResponder { service: service.to_owned() },
        BrokerError::Unavailable(reason) => {
            tracing::warn!(service, reason, "a request was not sent");
            RequestError::Unsent { service: service.to_owned() }
        }
    }
}

fn fits(service: &str, size: usize) -> Result<(), RequestError> {
    if size > MESSAGE_LIMIT {
        return Err(RequestError::Oversize { service: service.to_owned(), size, limit: MESSAGE_LIMIT });
    }
    Ok(())
}

/// A failure below does not know which service it happened in.
fn named(service: &str, error: RequestError) -> RequestError {
    match error {
        RequestError::Failed { service: unknown } if unknown.is_empty() => {
            RequestError::Failed { service: service.to_owned() }
        }
        RequestError::Unavailable { service: unknown } if unknown.is_empty() => {
            RequestError::Unavailable { service: service.to_owned() }
        }
        other => other,
    }
}

fn outcome(result: &Result<Value, RequestError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(RequestError::Refused(_)) => "refused",
        Err(RequestError::NoResponder { .. }) => "no_responder",
        Err(RequestError::Unsent { .. }) => "unsent",
        Err(RequestError::Deadline { .. }) => "deadline",
        Err(RequestError::Oversize { .. }) => "oversize",
        Err(RequestError::Unavailable { .. }) => "unavailable",
        Err(RequestError::Failed { .. }) => "failed",
    }
}

/// Turns any error into "the service failed", or that it cannot reach its database; the text goes to the log only.
pub fn failed<E: Display + 'static>(service: &'static str) -> impl Fn(E) -> RequestError {
    move |error| {
        let service = service.to_owned();
        let any: &dyn Any = &error;
        let away = match (any.downcast_ref::<sqlx::Error>(), any.downcast_ref::<eventstore::Error>()) {
            (Some(error), _) => eventstore::is_away(error),
            (_, Some(error)) => error.is_away(),
            _ => false,
        };
        if away {
            tracing::warn!(service, error = %format_args!("{error:#}"), "a request found no database");
            return RequestError::Unavailable { service };
        }
        tracing::error!(service, error = %format_args!("{error:#}"), "a request failed");
        RequestError::Failed { service }
    }
}

/// For a request whose name the service does not know.
pub fn unknown(req: &Request) -> RequestError {
    Refusal::new("unsupported", format!("{} does not know the request {}", req.service, req.name)).into()
}

/// Decodes a request's body.
///
/// # Errors
/// `invalid` for one that cannot be read.
pub fn body<A: Ask>(req: &Request) -> Result<A, RequestError> {
    serde::Deserialize::deserialize(&req.body)
        .map_err(|error| Refusal::new("invalid", format!("{} cannot be read: {error}", req.name)).into())
}

/// Decodes a request's body, calls `handler(ask, req)` and encodes its answer.
///
/// # Errors
/// `invalid` for a body that cannot be read; what the handler says.
pub async fn route<'r, A, F, Fut>(req: &'r Request, handler: F) -> Result<Value, RequestError>
where
    A: Ask,
    F: FnOnce(A, &'r Request) -> Fut,
    Fut: Future<Output = Result<A::Reply, RequestError>>,
{
    let reply = handler(body(req)?, req).await?;
    serde_json::to_value(reply).map_err(|error| {
        tracing::error!(name = req.name, %error, "an answer cannot be encoded");
        RequestError::Failed { service: req.service.clone() }
    })
}
