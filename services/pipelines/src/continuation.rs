//! The second configuration of a pipeline that began with a setup configuration (config-language §19).

use crate::{
    NAME, State,
    compile::{self, Job, Outcome},
    create, fetch,
    orbs::Shelf,
    policies,
    values::{self, Facts},
};
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    domain::Project,
    pipelines::{ContinuePipeline, PipelineContinued, PipelineCreated, PipelineView, Trigger, Vcs},
};
use eventstore::Key;
use ids::{PipelineId, Timestamp};
use serde_json::{Map, Value, json};
use sqlx::{PgConnection, Row, types::Json};

/// Hours after its creation within which a pipeline is continued.
pub(crate) const HOURS: i32 = 6;

/// What is known of the pipeline.
struct Held {
    state: String,
    late: bool,
    number: i64,
    created_at: Timestamp,
    project: Project,
    vcs: Vcs,
    trigger: Trigger,
    subject: Option<String>,
    parameters: Map<String, Value>,
    base_revision: Option<String>,
    source: String,
    compiled: String,
}

pub(crate) async fn go_on(
    state: &State,
    request: &Request,
    ask: ContinuePipeline,
) -> Result<PipelineView, Failure> {
    let failed = |error: anyhow::Error| Failure(bus::failed(NAME)(error));
    let source = blobs::text::receive(state.blobs.as_ref(), ask.configuration)
        .await
        .map_err(|error| failed(error.into()))?;
    let mut once = match Once::begin(&state.store, request, &[Key::new("pipeline", ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let held = load(once.tx.conn(), ask.id).await?;
    if held.state != "setup" {
        return Err(Refusal::new("not_in_setup", "Pipeline is not in setup state.").into());
    }
    if held.late {
        let message = format!("The pipeline is older than {HOURS} hours and cannot be continued.");
        return Err(Refusal::new("expired", message).into());
    }
    if conflicting(&held, &source, &ask.parameters) {
        return Err(Refusal::new("invalid", "Conflicting pipeline parameters.").into());
    }

    let facts = Facts {
        id: ask.id,
        number: held.number,
        project: &held.project,
        vcs: &held.vcs,
        trigger: &held.trigger,
        base_revision: held.base_revision.as_deref(),
    };
    let job = Job {
        file: "continuation config".into(),
        inherited: held.parameters.clone(),
        continuation: true,
        ..Job::new(&source, ask.parameters, values::of(state, &facts))
    };
    let org = held.project.org_id;
    if !job.parameters.is_empty() {
        compile::misfits(once.tx.conn(), org, job.clone()).await.map_err(failed)??;
    }
    let found = compile::with_orbs(once.tx.conn(), &Shelf::default(), &[org], job).await.map_err(failed)?;
    let mut outcome: Outcome = compile::outcome(found);
    policies::judge(state, &mut once.tx, &facts, &source, &mut outcome).await.map_err(failed)?;
    let Outcome { plan, errors, compiled } = outcome;
    let (inline, digest) = create::place(state, plan).await.map_err(failed)?;

    let state_word = if errors.is_empty() { "created" } else { "errored" };
    sqlx::query(
        "UPDATE pipelines.pipelines SET state = $2, errors = $3, source = $4, compiled = $5, plan_digest = $6,
            setup_source = $7, setup_compiled = $8, continued_at = now() WHERE id = $1",
    )
    .bind(ask.id.uuid())
    .bind(state_word)
    .bind(Json(&errors))
    .bind(&source)
    .bind(&compiled)
    .bind(&digest)
    .bind(&held.source)
    .bind(&held.compiled)
    .execute(once.tx.conn())
    .await?;
    let body = PipelineContinued(PipelineCreated {
        pipeline_id: ask.id,
        project: held.project.clone(),
        number: held.number,
        trigger: held.trigger.clone(),
        vcs: held.vcs.clone(),
        setup: false,
        errors: errors.clone(),
        plan: inline,
        plan_digest: digest,
    });
    let event = NewEvent::new("pipeline", ask.id.uuid(), request.actor.clone(), &body)
        .in_project(org, held.project.id)
        .of_pipeline(ask.id)
        .caused_by(request.id)
        .with_personal(json!({ "subject": held.subject }));
    once.tx.append(&[event]).await?;
    once.commit(PipelineView {
        id: ask.id,
        number: held.number,
        state: state_word.to_owned(),
        created_at: held.created_at,
        errors,
        project: held.project,
        vcs: held.vcs,
        subject: held.subject,
        trigger: held.trigger,
    })
    .await
}

async fn load(conn: &mut PgConnection, id: PipelineId) -> Result<Held, Failure> {
    let row = sqlx::query(
        "SELECT state, number, created_at, created_at < now() - make_interval(hours => $2) AS late, project, vcs,
            trigger, subject, parameters, base_revision, source, compiled
         FROM pipelines.pipelines WHERE id = $1",
    )
    .bind(id.uuid())
    .bind(HOURS)
    .fetch_optional(conn)
    .await?
    .ok_or_else(|| Refusal::not_found("Pipeline"))?;
    Ok(Held {
        state: row.try_get("state")?,
        late: row.try_get("late")?,
        number: row.try_get("number")?,
        created_at: row.try_get("created_at")?,
        project: row.try_get::<Json<Project>, _>("project")?.0,
        vcs: row.try_get::<Json<Vcs>, _>("vcs")?.0,
        trigger: row.try_get::<Json<Trigger>, _>("trigger")?.0,
        subject: row.try_get("subject")?,
        parameters: row.try_get::<Json<Map<String, Value>>, _>("parameters")?.0,
        base_revision: row.try_get("base_revision")?,
        source: row.try_get("source")?,
        compiled: row.try_get("compiled")?,
    })
}

/// Whether a parameter is declared in both configurations, passed in the call, and was given by the trigger with
/// another value than the setup configuration's default. What cannot be read conflicts with nothing: the compiler
/// says what is wrong with it.
fn conflicting(held: &Held, source: &str, passed: &Map<String, Value>) -> bool {
    let declared = |text: &str| -> Map<String, Value> {
        let data = compiler::data(fetch::PATH, text).unwrap_or_default();
        data.get("parameters").and_then(Value::as_object).cloned().unwrap_or_default()
    };
    if passed.is_empty() || held.parameters.is_empty() {
        return false;
    }
    let (setup, second) = (declared(&held.source), declared(source));
    passed.keys().any(|name| {
        let (Some(first), true) = (setup.get(name), second.contains_key(name)) else { return false };
        held.parameters.get(name).is_some_and(|given| Some(given) != first.get("default"))
    })
}
