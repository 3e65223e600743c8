//! A newer pipeline cancels the older workflows of its branch, where the project wants that (execution §8).

use crate::support::{LIMIT, World, append, approval, build, until, workflow};
use contracts::{
    NewEvent,
    conductor::RerunWorkflow,
    domain::{ProjectSettings, ProjectSettingsChanged},
};
use eventstore::{NO_MIGRATIONS, Store};

#[tokio::test]
async fn a_newer_pipeline_cancels_older_workflows_of_its_branch() {
    let mut world = World::new().await;
    let domain = Store::open(world.pool.clone(), "domain", &NO_MIGRATIONS).await.unwrap();
    world.bus.register_source(&domain);
    let settings = ProjectSettings { autocancel_builds: true, ..ProjectSettings::default() };
    let body = ProjectSettingsChanged { project_id: world.project.id, settings };
    append(&domain, NewEvent::new("project", world.project.id.uuid(), world.actor(), &body)).await;
    until("the setting is known", LIMIT, async || {
        let n: i64 = sqlx::query_scalar("SELECT count(*) FROM conductor.project_settings WHERE auto_cancel")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        n == 1
    })
    .await;

    let plan = || vec![workflow("main", vec![build("a", &[]), approval("hold", &[])])];
    let on_main = world.push(plan()).await.remove(0).workflow_id;
    world.push(plan()).await;
    world.branch = "feature".into();
    let older = world.push(plan()).await.remove(0).workflow_id;
    let by_hand = world
        .ask(&RerunWorkflow {
            id: older,
            from_failed: false,
            jobs: None,
            sparse_tree: false,
            failed_tests: false,
            ssh: false,
        })
        .await
        .unwrap()
        .id;
    world.branch = "other".into();
    let elsewhere = world.push(plan()).await.remove(0).workflow_id;
    world.branch = "feature".into();
    let newer = world.push(plan()).await.remove(0).workflow_id;
    until("the older one is being canceled", LIMIT, async || {
        let cancel: bool = sqlx::query_scalar("SELECT cancel FROM conductor.workflows WHERE id = $1")
            .bind(older.uuid())
            .fetch_one(&world.pool)
            .await
            .unwrap();
        cancel
    })
    .await;
    assert_eq!(world.jobs(older).await["hold"], "canceled", "approvals too");
    until("what is done is forgotten", LIMIT, async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM conductor.newer_pipelines")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        left == 0
    })
    .await;
    assert_eq!(world.others.revoked.lock().unwrap().len(), 1);
    for kept in [on_main, by_hand, elsewhere, newer] {
        assert_eq!(world.jobs(kept).await["hold"], "on_hold");
    }
    world.check_rows().await;
    world.stop().await;
}
