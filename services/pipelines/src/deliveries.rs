//! Each delivery gets one decision: a pipeline, or why not.

use crate::{
    State,
    create::{self, New},
    fetch,
};
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{
    Envelope, Event,
    delivery::{DeliveryReceived, GitRef},
    pipelines::{Trigger, Vcs},
};
use eventstore::{Key, Tx};
use serde_json::{Map, Value};

pub(crate) struct Deliveries(pub(crate) State);

#[async_trait]
impl Group for Deliveries {
    fn name(&self) -> &'static str {
        "pipelines.deliveries"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[DeliveryReceived::TYPE]
    }

    fn locks(&self, message: &Envelope) -> Vec<Key> {
        // What cannot be read locks nothing: `handle` says why.
        message.body_as::<DeliveryReceived>().map(|body| create::lock(&body.project)).into_iter().collect()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            self.decide(tx, message).await?;
        }
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        for delivery in batch.iter().filter_map(|message| message.body_as::<DeliveryReceived>().ok()) {
            let decision = if skipped(&delivery).is_some() { "ignore" } else { "run" };
            metrics::counter!("gantry.pipelines.decisions", "decision" => decision).increment(1);
        }
        self.0.decided.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Deliveries {
    async fn decide(&self, tx: &mut Tx, message: &Envelope) -> Result<(), Fault> {
        let delivery: DeliveryReceived = message.body_as()?;
        let decided: Option<bool> =
            sqlx::query_scalar("SELECT true FROM pipelines.decisions WHERE delivery_id = $1")
                .bind(delivery.delivery_id.uuid())
                .fetch_optional(tx.conn())
                .await?;
        if decided.is_some() {
            return Ok(());
        }
        if let Some(reason) = skipped(&delivery) {
            sqlx::query("INSERT INTO pipelines.decisions (delivery_id, reason) VALUES ($1, $2)")
                .bind(delivery.delivery_id.uuid())
                .bind(reason)
                .execute(tx.conn())
                .await?;
            return Ok(());
        }

        let said = |name: &str| {
            let text = message.personal.as_ref()?.get(name)?.as_str()?;
            Some(text.to_owned())
        };
        let source = fetch::config(&self.0, &delivery.project, &delivery.revision).await?;
        let (branch, tag) = match delivery.reference {
            GitRef::Branch(name) => (Some(name), None),
            GitRef::Tag(name) => (None, Some(name)),
        };
        let new = New {
            project: delivery.project,
            vcs: Vcs { revision: delivery.revision, branch, tag },
            before: delivery.before,
            trigger: Trigger {
                kind: "webhook".to_owned(),
                actor: message.actor.user(),
                actor_login: said("pusher"),
                received_at: message.occurred_at,
            },
            subject: said("subject"),
            parameters: Map::<String, Value>::new(),
            source,
            actor: message.actor.clone(),
            cause: Some(message.id),
        };
        let pipeline = create::create(&self.0, tx, new).await.map_err(unstored)?;
        sqlx::query("INSERT INTO pipelines.decisions (delivery_id, pipeline_id) VALUES ($1, $2)")
            .bind(delivery.delivery_id.uuid())
            .bind(pipeline.id.uuid())
            .execute(tx.conn())
            .await?;
        Ok(())
    }
}

/// A push does not get lost because the blob store is away for long.
fn unstored(error: anyhow::Error) -> Fault {
    match error.downcast_ref() {
        Some(blobs::Error::Io(_)) => Fault::Away(error),
        _ => error.into(),
    }
}

/// Why a push gets no pipeline, if somebody asked for none.
fn skipped(delivery: &DeliveryReceived) -> Option<&'static str> {
    if delivery.no_pipeline {
        return Some("the push asked for none (-o ci.skip)");
    }
    delivery.skip.then_some("the head commit's message says [skip ci] or [ci skip]")
}
