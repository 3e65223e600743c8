//! Changes. Refusals are data: `errors` of the payload with a stable code.

use super::{
    Outcome, app, caller, parse,
    types::{Job, Pipeline, Workflow},
};
use crate::{error::Fail, v2, view};
use async_graphql::{Context, ID, InputObject, Json, Object, SimpleObject};
use contracts::{
    conductor::{ApproveJob, CancelWorkflow, RerunWorkflow},
    domain::{CreateToken, RevokeToken},
};
use ids::{JobId, OrgId, TokenId, WorkflowId};
use model::permission::Permission;
use serde_json::{Map, Value};

/// Why a change was refused.
#[derive(SimpleObject)]
pub struct MutationError {
    /// Stable, for example `already_decided`, `not_found`, `forbidden`, `invalid`.
    code: String,
    /// For people.
    message: String,
}

fn errors(fail: Fail) -> Vec<MutationError> {
    vec![MutationError { code: fail.code, message: fail.message }]
}

/// What to trigger.
#[derive(InputObject)]
pub struct TriggerInput {
    project_slug: String,
    /// Default: the project's default branch.
    branch: Option<String>,
    /// Not together with a branch.
    tag: Option<String>,
    /// Pipeline parameters by name.
    parameters: Option<Json<Map<String, Value>>>,
}

/// A pipeline, or why there is none.
#[derive(SimpleObject)]
pub struct PipelinePayload {
    pipeline: Option<Pipeline>,
    errors: Vec<MutationError>,
}

/// A workflow, or why nothing changed.
#[derive(SimpleObject)]
pub struct WorkflowPayload {
    workflow: Option<Workflow>,
    errors: Vec<MutationError>,
}

/// A job, or why nothing changed.
#[derive(SimpleObject)]
pub struct JobPayload {
    job: Option<Job>,
    errors: Vec<MutationError>,
}

/// A new token; its value is shown this once.
#[derive(SimpleObject)]
pub struct TokenPayload {
    token: Option<String>,
    id: Option<ID>,
    errors: Vec<MutationError>,
}

/// Nothing, or why.
#[derive(SimpleObject)]
pub struct EmptyPayload {
    errors: Vec<MutationError>,
}

/// Changes.
pub struct Mutation;

impl WorkflowPayload {
    fn of(found: Result<Workflow, Fail>) -> Self {
        match found {
            Ok(workflow) => Self { workflow: Some(workflow), errors: vec![] },
            Err(fail) => Self { workflow: None, errors: errors(fail) },
        }
    }
}

impl JobPayload {
    fn of(found: Result<Job, Fail>) -> Self {
        match found {
            Ok(job) => Self { job: Some(job), errors: vec![] },
            Err(fail) => Self { job: None, errors: errors(fail) },
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "arguments of a mutation are named where it is called")]
#[Object]
impl Mutation {
    /// Makes a pipeline for a branch or tag.
    async fn trigger_pipeline(&self, ctx: &Context<'_>, input: TriggerInput) -> Outcome<PipelinePayload> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let made = async {
            let project = view::project(app, caller, &input.project_slug).await?;
            app.allow(caller, Permission::Trigger, project.org_id).await?;
            let parameters = input.parameters.map(|parameters| parameters.0).unwrap_or_default();
            let made =
                v2::trigger_pipeline(app, caller, project, input.branch, input.tag, parameters).await?;
            view::pipeline(app, caller, made.id).await
        };
        Ok(match made.await {
            Ok(row) => PipelinePayload { pipeline: Some(Pipeline(row)), errors: vec![] },
            Err(fail) => PipelinePayload { pipeline: None, errors: errors(fail) },
        })
    }

    /// Cancels a workflow. No task of it is handed out after the answer.
    async fn cancel_workflow(&self, ctx: &Context<'_>, id: ID) -> Outcome<WorkflowPayload> {
        let (app, caller, id) = (app(ctx), caller(ctx)?, parse::<WorkflowId>(&id, "Workflow")?);
        let done = async {
            let row = view::workflow(app, caller, id).await?;
            app.allow(caller, Permission::Cancel, OrgId(row.org_id)).await?;
            let state = app.command(caller, &CancelWorkflow { id }).await?;
            app.workflow_seen(state.id, state.version).await;
            view::workflow(app, caller, id).await
        };
        Ok(WorkflowPayload::of(done.await.map(Workflow)))
    }

    /// Reruns a workflow as a new instance: all of it, from failed, or only the named jobs, with `sparseTree` also
    /// what waits for them; with `failedTests` from failed, and only the failed tests of jobs that failed; with `ssh` the
    /// named jobs, which can then be entered with the SSH keys of who asks.
    async fn rerun_workflow(
        &self,
        ctx: &Context<'_>,
        id: ID,
        #[graphql(default)] from_failed: bool,
        jobs: Option<Vec<ID>>,
        #[graphql(default)] sparse_tree: bool,
        #[graphql(default)] failed_tests: bool,
        #[graphql(default)] ssh: bool,
    ) -> Outcome<WorkflowPayload> {
        let (app, caller, id) = (app(ctx), caller(ctx)?, parse::<WorkflowId>(&id, "Workflow")?);
        let done = async {
            let row = view::workflow(app, caller, id).await?;
            app.allow(caller, Permission::Rerun, OrgId(row.org_id)).await?;
            let jobs = jobs.map(|jobs| jobs.iter().map(|job| view::id(job, "Job")).collect()).transpose()?;
            let ask = RerunWorkflow { id, from_failed, jobs, sparse_tree, failed_tests, ssh };
            let state = app.command(caller, &ask).await?;
            app.workflow_seen(state.id, state.version).await;
            view::workflow(app, caller, state.id).await
        };
        Ok(WorkflowPayload::of(done.await.map(Workflow)))
    }

    /// Cancels one job.
    async fn cancel_job(&self, ctx: &Context<'_>, id: ID) -> Outcome<JobPayload> {
        let (app, caller, id) = (app(ctx), caller(ctx)?, parse::<JobId>(&id, "Job")?);
        let done = async {
            let row = view::job(app, caller, id).await?;
            v2::cancel(app, caller, &row).await?;
            view::job(app, caller, id).await
        };
        Ok(JobPayload::of(done.await.map(Job)))
    }

    /// Approves an approval job.
    async fn approve_job(&self, ctx: &Context<'_>, id: ID) -> Outcome<JobPayload> {
        let (app, caller, id) = (app(ctx), caller(ctx)?, parse::<JobId>(&id, "Job")?);
        let done = async {
            let row = view::job(app, caller, id).await?;
            app.allow(caller, Permission::Approve, OrgId(row.org_id)).await?;
            let workflow_id = Some(WorkflowId(row.workflow_id));
            let state = app.command(caller, &ApproveJob { workflow_id, job_id: id }).await?;
            app.workflow_seen(state.id, state.version).await;
            view::job(app, caller, id).await
        };
        Ok(JobPayload::of(done.await.map(Job)))
    }

    /// Makes a personal token. Its value is in the answer and nowhere else.
    async fn create_token(&self, ctx: &Context<'_>, label: String) -> Outcome<TokenPayload> {
        use sha2::{Digest, Sha256};
        let (app, caller) = (app(ctx), caller(ctx)?);
        let token = super::new_token().map_err(|fail| async_graphql::Error::new(fail.message))?;
        let ask = CreateToken { label, sha256: hex::encode(Sha256::digest(token.as_bytes())) };
        Ok(match app.command(caller, &ask).await.map_err(Fail::from) {
            Ok(info) => {
                TokenPayload { token: Some(token), id: Some(ID(info.id.to_string())), errors: vec![] }
            }
            Err(fail) => TokenPayload { token: None, id: None, errors: errors(fail) },
        })
    }

    /// Revokes a personal token.
    async fn revoke_token(&self, ctx: &Context<'_>, id: ID) -> Outcome<EmptyPayload> {
        let (app, caller, id) = (app(ctx), caller(ctx)?, parse::<TokenId>(&id, "Token")?);
        let done = app.command(caller, &RevokeToken { id }).await.map_err(Fail::from);
        Ok(EmptyPayload { errors: done.err().map(errors).unwrap_or_default() })
    }
}
