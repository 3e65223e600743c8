//! Pipelines that somebody asks for.

use crate::{
    NAME, State, compile,
    create::{self, New},
    fetch,
};
use bus::once::{Begun, Failure, Once};
use contracts::{
    Refusal, Request,
    pipelines::{PipelineView, Trigger, TriggerPipeline, Vcs},
};
use vcs::{Commit, Reader};

pub(crate) async fn trigger(
    state: &State,
    request: &Request,
    ask: TriggerPipeline,
) -> Result<PipelineView, Failure> {
    let failed = |error: anyhow::Error| Failure(bus::failed(NAME)(error));
    if ask.branch.is_some() && ask.tag.is_some() {
        return Err(Refusal::new("invalid", "a pipeline runs for a branch or a tag, not both").into());
    }
    let received_at = chrono::Utc::now();
    let (branch, tag) = match (ask.branch, ask.tag) {
        (None, Some(tag)) => (None, Some(tag)),
        (branch, _) => (Some(branch.unwrap_or_else(|| ask.project.default_branch.clone())), None),
    };
    let (mut reader, commit) =
        resolve(state, &ask.project, branch.as_deref(), tag.as_deref()).await.map_err(failed)??;
    let source = fetch::read(&mut reader, &commit.revision).await.map_err(failed)?;
    drop(reader);
    let lock = create::lock(&ask.project);
    let new = New {
        project: ask.project,
        vcs: Vcs { revision: commit.revision, branch, tag },
        before: None,
        trigger: Trigger {
            kind: "api".to_owned(),
            actor: request.actor.user(),
            actor_login: ask.actor_login,
            received_at,
        },
        subject: Some(commit.subject),
        parameters: ask.parameters,
        source,
        actor: request.actor.clone(),
        cause: Some(request.id),
    };
    compile::check_parameters(state, &new).await.map_err(failed)??;

    let mut once = match Once::begin(&state.store, request, &[lock]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let view = create::create(state, &mut once.tx, new).await.map_err(failed)?;
    once.commit(view).await
}

/// The commit of a branch or tag, and the repository that is being read.
async fn resolve(
    state: &State,
    project: &contracts::domain::Project,
    branch: Option<&str>,
    tag: Option<&str>,
) -> anyhow::Result<Result<(Reader, Commit), Refusal>> {
    let repository = state.git.repository(&project.org, &project.name);
    let mut reader = match repository.and_then(|repository| repository.read()) {
        Ok(reader) => reader,
        Err(vcs::Error::Name(_) | vcs::Error::NoRepository(_)) => {
            let message = format!("{} has no repository here: push to it first", project.slug);
            return Ok(Err(Refusal::new("not_found", message)));
        }
        Err(error) => return Err(error.into()),
    };
    let (what, name, found) = match (branch, tag) {
        (Some(name), _) => ("Branch", name, reader.branch(name).await?),
        (None, Some(name)) => ("Tag", name, reader.tag(name).await?),
        (None, None) => anyhow::bail!("neither branch nor tag"),
    };
    Ok(found.map(|commit| (reader, commit)).ok_or_else(|| Refusal::not_found(&format!("{what} {name}"))))
}
