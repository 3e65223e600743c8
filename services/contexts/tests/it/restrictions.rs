//! Who may use a context, and what a repeated write does.

use super::*;
use axum::http::StatusCode;

async fn restrict(
    suite: &Suite,
    context_id: ContextId,
    kind: RestrictionKind,
    value: &str,
) -> Result<Restriction, RequestError> {
    suite.bus.ask(&suite.user, &AddRestriction { context_id, kind, value: value.into() }).await
}

/// What a job of the project gets: the code of the refusal, or the names of its variables.
async fn tried(suite: &Suite, project: &Project, acting_user: Option<UserId>) -> Result<Vec<String>, String> {
    let task = Task::of(suite.ready(project, &["deploy"], acting_user).await);
    let (status, body) = suite.get(task.id, &task.fence(suite)).await;
    if status == StatusCode::OK {
        return Ok(task.open(&body).into_iter().map(|(name, _)| name).collect());
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem.code, "context_unauthorized", "{}", problem.message);
    Err(problem.message)
}

#[tokio::test]
async fn every_kind_of_restriction_must_hold_and_an_emptied_one_opens_nothing() {
    let suite = suite().await;
    let (ours, member) = (project(), UserId::new());
    suite.grant(member, "contributor").await;
    let other = Project { id: ProjectId::new(), ..ours.clone() };
    let context = suite.context(ours.org_id, "deploy").await.id;
    suite.set(Scope::Context(context), "TOKEN", "a-value").await.unwrap();
    let given = Ok(vec!["TOKEN".to_owned()]);
    assert_eq!(tried(&suite, &other, None).await, given);

    let of_project = restrict(&suite, context, RestrictionKind::Project, &ours.id.to_string()).await.unwrap();
    assert_eq!(tried(&suite, &ours, None).await, given);
    let said = tried(&suite, &other, None).await.unwrap_err();
    assert!(said.contains("project restriction") && !said.contains(&ours.id.to_string()), "{said}");

    let expression = restrict(&suite, context, RestrictionKind::Expression, "pipeline.number == 1").await;
    assert_eq!(tried(&suite, &ours, None).await, given);
    restrict(&suite, context, RestrictionKind::Expression, "pipeline.git.branch == \"release\"")
        .await
        .unwrap();
    let said = tried(&suite, &ours, None).await.unwrap_err();
    assert!(said.contains("expression restriction"), "the branch is another one: {said}");
    suite.bus.ask(&suite.user, &Unrestrict { context_id: context }).await.unwrap();
    assert_eq!(tried(&suite, &other, None).await, given);
    let gone = RemoveRestriction { context_id: context, id: expression.unwrap().id };
    assert_eq!(refused(suite.bus.ask(&suite.user, &gone).await.unwrap_err()), "not_found");

    restrict(&suite, context, RestrictionKind::Group, &ours.org_id.to_string()).await.unwrap();
    assert_eq!(tried(&suite, &ours, Some(member)).await, given);
    let said = tried(&suite, &ours, None).await.unwrap_err();
    assert!(said.contains("group restriction"), "nobody acts: {said}");

    suite.bus.ask(&suite.user, &Unrestrict { context_id: context }).await.unwrap();
    assert_ne!(of_project.id, RestrictionId(uuid::Uuid::nil()));
    let last = restrict(&suite, context, RestrictionKind::Project, &ours.id.to_string()).await.unwrap();
    let remove = RemoveRestriction { context_id: context, id: last.id };
    suite.bus.ask(&suite.user, &remove).await.unwrap();
    assert!(tried(&suite, &ours, Some(member)).await.is_err(), "the last one's removal opens nothing");
}

#[tokio::test]
async fn a_restriction_that_means_nothing_is_refused() {
    let suite = suite().await;
    let context = suite.context(OrgId::new(), "deploy").await.id;
    for (kind, value, code) in [
        (RestrictionKind::Project, "git/local/demo", "invalid"),
        (RestrictionKind::Expression, "pipeline.number ==", "invalid"),
        (RestrictionKind::Expression, "", "invalid"),
        (RestrictionKind::Expression, &"x".repeat(1025), "invalid"),
        (RestrictionKind::Group, "0198c2f4-1111-7000-8000-000000000001", "not_found"),
    ] {
        assert_eq!(refused(restrict(&suite, context, kind, value).await.unwrap_err()), code, "{value}");
    }
    restrict(&suite, context, RestrictionKind::Expression, "pipeline.number == 1").await.unwrap();
    let again = restrict(&suite, context, RestrictionKind::Expression, "pipeline.number == 1").await;
    assert_eq!(refused(again.unwrap_err()), "exists");
}

#[tokio::test]
async fn a_repeated_write_is_one_write_and_another_value_under_its_key_is_refused() {
    let suite = suite().await;
    let scope = Scope::Project(ProjectId::new());
    let set = async |value: &str| {
        let sealed = B64.encode(suite.ring.encrypt(contexts::REQUEST_LABEL, value.as_bytes()).await.unwrap());
        let ask = SetVariable { scope: scope.clone(), name: "TOKEN".into(), sealed };
        let options = bus::AskOptions { idempotency_key: Some("k1".into()), ..Default::default() };
        suite.bus.ask_with(options, &suite.user, &ask).await
    };
    let first = set("the-value").await.unwrap();
    assert_eq!(set("the-value").await.unwrap(), first);
    assert_eq!(refused(set("another-value").await.unwrap_err()), "idempotency_key_reused");
    let versions: i64 =
        sqlx::query_scalar("SELECT version FROM contexts.variables").fetch_one(&suite.db.pool).await.unwrap();
    assert_eq!(versions, 1);
}
