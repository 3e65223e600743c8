//! Requests: cancel, approve, rerun.

use crate::{
    State,
    create::{self, Which, Why},
    error::Result,
    key, me, now,
    step::{self, Cause},
    store,
};
use async_trait::async_trait;
use bus::{Responder, route};
use contracts::{
    Refusal, Request, RequestError,
    conductor::{
        ApproveJob, CancelJob, CancelWorkflow, ExplainWait, JobAncestry, ReleaseTurn, RerunWorkflow,
        WorkflowState,
    },
    dispatcher::RevokeJobs,
    domain::{GetProjectSettings, ListUserKeys, UserKeys},
    permissions::CheckPermission,
    request::Ask,
    retention::SettledPipelines,
};
use eventstore::{Act, Key, Tx};
use ids::{JobId, WorkflowId};
use model::{
    permission::Permission,
    ssh::Access,
    workflow::{Command, Walk},
};
use serde_json::json;
use std::time::Duration;

/// After a revocation that the dispatcher has committed, it is asked again in case that the job's end never
/// came: a revocation of what has ended changes nothing there.
const REVOKE_AGAIN: Duration = Duration::from_secs(30);

#[async_trait]
impl Responder for State {
    async fn respond(&self, request: Request) -> Result<serde_json::Value, RequestError> {
        let req = &request;
        match request.name.as_str() {
            CancelWorkflow::NAME => {
                route::<CancelWorkflow, _, _>(req, |ask, req| async move {
                    Ok(self.cancel_workflow(req, ask).await?)
                })
                .await
            }
            CancelJob::NAME => {
                route::<CancelJob, _, _>(req, |ask, req| async move { Ok(self.cancel_job(req, ask).await?) })
                    .await
            }
            ApproveJob::NAME => {
                route::<ApproveJob, _, _>(req, |ask, req| async move { Ok(self.approve(req, ask).await?) })
                    .await
            }
            RerunWorkflow::NAME => {
                route::<RerunWorkflow, _, _>(req, |ask, req| async move { Ok(self.rerun(req, ask).await?) })
                    .await
            }
            ReleaseTurn::NAME => {
                route::<ReleaseTurn, _, _>(
                    req,
                    |ask, req| async move { Ok(self.release_turn(req, ask).await?) },
                )
                .await
            }
            ExplainWait::NAME => {
                route::<ExplainWait, _, _>(req, |ask, _| async move { Ok(self.explain(ask).await?) }).await
            }
            SettledPipelines::NAME => {
                route::<SettledPipelines, _, _>(req, |ask, _| async move { Ok(self.settled(ask).await?) })
                    .await
            }
            JobAncestry::NAME => {
                route::<JobAncestry, _, _>(req, |ask, _| async move { Ok(self.ancestry(ask).await?) }).await
            }
            _ => Err(bus::unknown(req)),
        }
    }
}

/// A duration as people say it.
fn days(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 86_400 { format!("{} days", seconds / 86_400) } else { format!("{seconds} seconds") }
}

/// A command's transaction, or the answer that it had before.
pub(crate) enum Begun {
    New(Tx),
    Answered(WorkflowState),
}

impl State {
    async fn cancel_workflow(&self, request: &Request, ask: CancelWorkflow) -> Result<WorkflowState> {
        self.permit(request, ask.id, Permission::Cancel).await?;
        let answer = match self.begin(request, &[key(ask.id)]).await? {
            Begun::Answered(answer) => answer,
            Begun::New(mut tx) => {
                let now = now();
                let Some(mut workflow) = store::workflow(tx.conn(), ask.id).await? else {
                    return Err(Refusal::not_found("workflow").into());
                };
                let open = store::open_jobs(tx.conn(), ask.id).await?;
                let mut walk = Walk::new(workflow.root.clone(), now);
                walk.cancel_workflow(open, None)?;
                step::commit(&mut tx, &mut workflow, Vec::new(), &walk.conclude(), &cause(request), now)
                    .await?;
                self.finish(request, tx, workflow.state()).await?
            }
        };
        // Also for a repeat: the first one may have ended between its commit and this.
        self.revoke(ask.id).await?;
        Ok(answer)
    }

    async fn cancel_job(&self, request: &Request, ask: CancelJob) -> Result<WorkflowState> {
        let id = self.workflow_of(ask.job_id).await?;
        self.permit(request, id, Permission::Cancel).await?;
        let answer = self.job_command(request, id, ask.job_id, &Command::Cancel { reason: None }).await?;
        self.revoke(id).await?;
        Ok(answer)
    }

    async fn approve(&self, request: &Request, ask: ApproveJob) -> Result<WorkflowState> {
        let id = self.workflow_of(ask.job_id).await?;
        if ask.workflow_id.is_some_and(|workflow| workflow != id) {
            return Err(Refusal::not_found("job").into());
        }
        let Some(by) = request.actor.user() else {
            return Err(Refusal::new("forbidden", "only a person can approve").into());
        };
        self.permit(request, id, Permission::Approve).await?;
        self.job_command(request, id, ask.job_id, &Command::Approve { by }).await
    }

    async fn rerun(&self, request: &Request, ask: RerunWorkflow) -> Result<WorkflowState> {
        let workspace = self.permit(request, ask.id, Permission::Rerun).await?;
        let ssh = self.access(request, &ask).await?;
        // All instances of a workflow share one lock, for the limit of their number.
        let mut tx = match self.begin(request, &[key(workspace)]).await? {
            Begun::Answered(answer) => return Ok(answer),
            Begun::New(tx) => tx,
        };
        let Some(old) = store::workflow(tx.conn(), ask.id).await? else {
            return Err(Refusal::not_found("workflow").into());
        };
        if (now() - old.created_at).to_std().is_ok_and(|age| age > self.reruns) {
            let message = format!("the workflow is older than {}", days(self.reruns));
            return Err(Refusal::new("too_old", message).into());
        }
        let which = match ask.jobs {
            Some(_) if ask.from_failed || ask.failed_tests => {
                let message = "`jobs` excludes `from_failed` and `failed_tests`: send only one of them";
                return Err(Refusal::new("invalid", message).into());
            }
            Some(jobs) => Which::Selected { jobs, downstream: ask.sparse_tree },
            None if ask.sparse_tree => {
                return Err(Refusal::new("invalid", "`sparse_tree` needs `jobs`").into());
            }
            None if ask.from_failed || ask.failed_tests => Which::Failed { tests: ask.failed_tests },
            None => Which::All,
        };
        if let (Some(access), Which::Selected { jobs, .. }) = (&ssh, &which) {
            let detail = json!({ "jobs": jobs, "login": access.login, "keys": access.keys.len() });
            let mut act =
                Act::new("job.ssh_rerun", request.actor.clone(), detail).on("workflow", ask.id.uuid());
            act.org_id = Some(old.project.org_id);
            act.correlation_id = Some(old.pipeline_id);
            act.causation_id = Some(request.id);
            tx.act(act).await?;
        }
        let why = Why::Asked { by: request.actor.user(), which, ssh };
        let new = create::rerun(&mut tx, &old, why, &cause(request), now()).await?;
        self.finish(request, tx, new.state()).await
    }

    /// Who may enter the jobs of a rerun: the person who asks, with the keys that are registered now. A rerun of what was
    /// run with SSH has it too (execution §9). Before the transaction, which calls nobody.
    async fn access(&self, request: &Request, ask: &RerunWorkflow) -> Result<Option<Access>> {
        let old = {
            let mut conn = self.store.pool().acquire().await?;
            store::workflow(&mut conn, ask.id).await?
        };
        let before = old.as_ref().and_then(|old| old.ssh.as_ref());
        match (ask.ssh, self.ssh) {
            (true, false) => {
                let message = "jobs cannot be rerun with SSH here: `[executors.ssh] enabled` is false";
                return Err(Refusal::new("ssh_disabled", message).into());
            }
            (true, true) if ask.jobs.is_none() => {
                let message = "a rerun with SSH is one of chosen jobs: name them in `jobs`";
                return Err(Refusal::new("invalid", message).into());
            }
            (false, true) if before.is_none() => return Ok(None),
            (false, false) => return Ok(None),
            (_, true) => {}
        }
        if request.actor.user().is_none() {
            return match ask.ssh {
                true => Err(Refusal::new("forbidden", "only a person can enter jobs").into()),
                false => Ok(None),
            };
        }
        if let Some(old) = &old {
            let ask_settings = GetProjectSettings { id: old.project.id };
            if self.bus.ask(&request.actor, &ask_settings).await?.disable_ssh {
                let message = "jobs of this project cannot be entered: its setting `disable_ssh` is true";
                return match ask.ssh {
                    true => Err(Refusal::new("ssh_disabled", message).into()),
                    false => Ok(None),
                };
            }
        }
        let UserKeys { login, keys } = self.bus.ask(&request.actor, &ListUserKeys {}).await?;
        Ok(Some(Access { login: Some(login), keys: keys.into_iter().map(|key| key.public_key).collect() }))
    }

    /// A command to one job, with its answer recorded.
    async fn job_command(
        &self,
        request: &Request,
        id: WorkflowId,
        job: JobId,
        command: &Command,
    ) -> Result<WorkflowState> {
        let mut tx = match self.begin(request, &[key(id)]).await? {
            Begun::Answered(answer) => return Ok(answer),
            Begun::New(tx) => tx,
        };
        let now = now();
        let (Some(mut workflow), Some(job)) =
            (store::workflow(tx.conn(), id).await?, store::job(tx.conn(), id, job).await?)
        else {
            return Err(Refusal::not_found("job").into());
        };
        let changes = step::decide(&mut tx, &workflow, job, command, now).await?;
        step::commit(&mut tx, &mut workflow, Vec::new(), &changes, &cause(request), now).await?;
        self.finish(request, tx, workflow.state()).await
    }

    /// Asks the dispatcher to revoke what was canceled and still lies with it. Safe to repeat.
    pub(crate) async fn revoke(&self, id: WorkflowId) -> Result<()> {
        let job_ids = {
            let mut conn = self.store.pool().acquire().await?;
            store::to_revoke(&mut conn, id).await?
        };
        if job_ids.is_empty() {
            return Ok(());
        }
        self.bus.ask(&me(), &RevokeJobs { job_ids }).await?;
        let mut conn = self.store.pool().acquire().await?;
        store::look_again(&mut conn, id, now() + REVOKE_AGAIN).await
    }

    pub(crate) async fn workflow_of(&self, job: JobId) -> Result<WorkflowId> {
        let mut conn = self.store.pool().acquire().await?;
        Ok(store::workflow_of_job(&mut conn, job).await?.ok_or_else(|| Refusal::not_found("job"))?)
    }

    /// Asks `permissions`, never a copy of the grants, whether the actor may; before the transaction, which calls
    /// nobody. Returns the first instance of the workflow.
    pub(crate) async fn permit(
        &self,
        request: &Request,
        id: WorkflowId,
        permission: Permission,
    ) -> Result<WorkflowId> {
        let workflow = {
            let mut conn = self.store.pool().acquire().await?;
            store::workflow(&mut conn, id).await?.ok_or_else(|| Refusal::not_found("workflow"))?
        };
        if let Some(user_id) = request.actor.user() {
            let org_id = workflow.project.org_id;
            let check = CheckPermission { user_id, permission: permission.as_str().to_owned(), org_id };
            if !self.bus.ask(&request.actor, &check).await? {
                let message = format!("this needs the permission {permission} in {}", workflow.project.org);
                return Err(Refusal::new("forbidden", message).into());
            }
        }
        Ok(workflow.workspace_id)
    }

    pub(crate) async fn begin(&self, request: &Request, locks: &[Key]) -> Result<Begun> {
        let mut tx = self.store.begin(locks).await?;
        Ok(
            match tx
                .answered(&command_key(request), &request.actor, &eventstore::digest(&request.body))
                .await?
            {
                Some(answer) => Begun::Answered(serde_json::from_value(answer)?),
                None => Begun::New(tx),
            },
        )
    }

    pub(crate) async fn finish(
        &self,
        request: &Request,
        mut tx: Tx,
        answer: WorkflowState,
    ) -> Result<WorkflowState> {
        let digest = eventstore::digest(&request.body);
        let value = serde_json::to_value(&answer)?;
        tx.record_answer(&command_key(request), &request.actor, &digest, &value).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

/// Under what a command's answer lies: the client's key, else the command's id.
fn command_key(request: &Request) -> String {
    match &request.idempotency_key {
        Some(key) => format!("key:{}:{key}", request.name),
        None => format!("id:{}", request.id),
    }
}

fn cause(request: &Request) -> Cause {
    Cause { actor: request.actor.clone(), message: request.id }
}
