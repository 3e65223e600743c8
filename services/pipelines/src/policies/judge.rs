//! A pipeline before its policies.

use super::{bundles, settings};
use crate::{State, compile::Outcome, fetch::PATH, values::Facts};
use compiler::Diagnostic;
use contracts::pipelines::PipelineError;
use eventstore::Tx;
use ids::{OrgId, PipelineId, PolicyBundleId, PolicyDecisionId};
use policy::{Bundle, Decision, Status};
use serde_json::{Value, json};
use sqlx::{PgConnection, types::Json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Bundles that were parsed, by id: a bundle never changes.
#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<PolicyBundleId, Arc<Bundle>>>);

/// Parsed bundles that are kept.
const KEPT: usize = 64;

impl Cache {
    fn get(&self, id: PolicyBundleId) -> Option<Arc<Bundle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn put(&self, id: PolicyBundleId, bundle: Arc<Bundle>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(id, bundle);
    }
}

/// Lets the organisation's policies decide about a configuration that compiled. One that they block loses its plan
/// and says which rule and why; what they cannot decide is blocked as well.
pub(crate) async fn judge(
    state: &State,
    tx: &mut Tx,
    facts: &Facts<'_>,
    source: &str,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let org = facts.project.org_id;
    if outcome.plan.is_none() || !settings::enabled(tx.conn(), org).await? {
        return Ok(());
    }
    let meta = json!({
        "project_id": facts.project.id, "build_number": facts.number, "ssh_rerun": false,
        "vcs": {
            "branch": facts.vcs.branch, "release_tag": facts.vcs.tag,
            "origin_repository_url": format!("{}/git/{}/{}.git", state.git_url, facts.project.org, facts.project.name),
            "target_repository_url": format!("{}/git/{}/{}.git", state.git_url, facts.project.org, facts.project.name),
        },
    });
    let input = read(PATH, source).and_then(|mut input| {
        let compiled = read("the compiled configuration", &outcome.compiled)?;
        if let Value::Object(map) = &mut input {
            map.insert("_compiled_".to_owned(), compiled);
        }
        Ok(input)
    });
    let made = decide(state, tx.conn(), org, input, meta).await?;
    made.keep(tx.conn(), org, Some(facts.id)).await?;
    if made.decision.blocks() {
        outcome.plan = None;
        outcome.errors = errors(&made.decision);
    }
    Ok(())
}

/// YAML as data.
pub(super) fn read(file: &str, text: &str) -> Result<Value, String> {
    compiler::data(file, text).map_err(|found| {
        found.first().map(Diagnostic::one_line).unwrap_or_else(|| format!("{file} is no YAML"))
    })
}

/// A decision with what it was made of.
pub(super) struct Made {
    pub(super) decision: Decision,
    bundle: Option<PolicyBundleId>,
    meta: Value,
    millis: i64,
}

/// Decides with the organisation's bundle, away from async threads.
pub(super) async fn decide(
    state: &State,
    conn: &mut PgConnection,
    org: OrgId,
    input: Result<Value, String>,
    meta: Value,
) -> anyhow::Result<Made> {
    let begun = Instant::now();
    let stored = bundles::current(conn, org).await?;
    let id = stored.as_ref().map(|stored| stored.id);
    let (files, known) = match stored {
        Some(stored) => (stored.files, state.policies.get(stored.id)),
        None => (BTreeMap::new(), None),
    };
    let given = meta.clone();
    let work = tokio::task::spawn_blocking(move || {
        let input = match input {
            Ok(input) => input,
            Err(why) => return (Decision::error(why), None),
        };
        let bundle = match known.map(Ok).unwrap_or_else(|| Bundle::parse(&files).map(Arc::new)) {
            Ok(bundle) => bundle,
            Err(error) => return (Decision::error(error.to_string()), None),
        };
        (bundle.decide(&input, &given), Some(bundle))
    });
    let decision = match work.await {
        Ok((decision, bundle)) => {
            if let (Some(id), Some(bundle)) = (id, bundle) {
                state.policies.put(id, bundle);
            }
            decision
        }
        Err(error) => {
            tracing::error!(%org, %error, "the policies' evaluation panicked");
            Decision::error("the policies could not be evaluated")
        }
    };
    let millis = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    Ok(Made { decision, bundle: id, meta, millis })
}

impl Made {
    /// Keeps it for the decision log.
    pub(super) async fn keep(
        &self,
        conn: &mut PgConnection,
        org: OrgId,
        pipeline: Option<PipelineId>,
    ) -> sqlx::Result<()> {
        let project = self.meta["project_id"].as_str().and_then(|id| id.parse::<uuid::Uuid>().ok());
        sqlx::query(
            "INSERT INTO pipelines.policy_decisions (id, org_id, bundle_id, pipeline_id, project_id, build_number,
                branch, status, decision, metadata, time_taken_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(PolicyDecisionId::new().uuid())
        .bind(org.uuid())
        .bind(self.bundle.map(PolicyBundleId::uuid))
        .bind(pipeline.map(PipelineId::uuid))
        .bind(project)
        .bind(self.meta["build_number"].as_i64())
        .bind(self.meta["vcs"]["branch"].as_str())
        .bind(self.decision.status.as_str())
        .bind(Json(&self.decision))
        .bind(Json(&self.meta))
        .bind(self.millis)
        .execute(conn)
        .await?;
        Ok(())
    }
}

fn errors(decision: &Decision) -> Vec<PipelineError> {
    let error = |message: String| PipelineError { kind: "config".to_owned(), message };
    if decision.status == Status::Error {
        let why = decision.reason.as_deref().unwrap_or("no reason was given");
        return vec![error(format!("blocked: the organisation's policies could not decide: {why}"))];
    }
    let blocked = |found: &policy::Violation| {
        error(format!("blocked by the policy rule `{}`: {}", found.rule, found.reason))
    };
    decision.hard_failures.iter().map(blocked).collect()
}
