use crate::support::{World, code, machine, patient};
use agent_api::{Renewed, Source};
use contracts::dispatcher::{JobStarted, TaskStarted};
use ids::ClaimId;
use kit::keys::{FenceClaims, SourceClaims};
use model::status::JobStatus;

#[tokio::test]
async fn a_repeated_claim_returns_the_same_lease() {
    let world = World::new(patient()).await;
    let job = world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    let claim = ClaimId::new();
    let first = world.claim_as(claim, queued.task_id, queued.epoch).await.unwrap();
    let second = world.claim_as(claim, queued.task_id, queued.epoch).await.unwrap();
    assert_eq!((first.task_id, first.epoch, first.permit), (second.task_id, second.epoch, true));
    assert_eq!(first.fence, second.fence);
    assert_eq!(first.spec.job_id, job);
    assert_eq!(first.spec.job_url, format!("http://ci.example/jobs/{job}"));
    assert_eq!(first.spec.repository_url, "http://ci.example/git/local/shop.git");
    assert_eq!(world.all::<TaskStarted>().await.len(), 1);
    assert_eq!(world.all::<JobStarted>().await.len(), 1);

    let other = world.claim_as(ClaimId::new(), queued.task_id, queued.epoch).await;
    assert_eq!(code(other), "stale_lease", "another agent does not get it");
    let fence: FenceClaims = world.keys.open_claims("fence", &first.fence).unwrap();
    assert_eq!((fence.task_id, fence.epoch, fence.public_key.as_deref()), (queued.task_id, 1, Some("a2V5")));
    world.halt().await;
}

#[tokio::test]
async fn two_agents_that_claim_at_once_get_one_lease() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    let claims = (0..8).map(|_| world.claim_as(ClaimId::new(), queued.task_id, queued.epoch));
    let leases = futures::future::join_all(claims).await;
    assert_eq!(leases.iter().filter(|lease| lease.is_ok()).count(), 1);
    world.halt().await;
}

#[tokio::test]
async fn tokens_of_other_epochs_and_tasks_are_refused() {
    let world = World::new(patient()).await;
    world.ready(2, machine()).await;
    let queued = world.queued(2).await;
    assert_eq!(code(world.claim_as(ClaimId::new(), queued[0].task_id, 7).await), "stale_lease");
    let lease = world.claim(&queued[0]).await;
    let path = format!("/v1/tasks/{}/renew", queued[1].task_id);
    assert_eq!(code(world.post::<Renewed>(&path, Some(&lease.fence), &()).await), "unauthorized");
    let stale = world.keys.seal_claims(
        "fence",
        &FenceClaims {
            task_id: lease.task_id,
            job_id: lease.spec.job_id,
            epoch: lease.epoch - 1,
            expires_at: i64::MAX,
            public_key: None,
            trace: None,
        },
    );
    let path = format!("/v1/tasks/{}/renew", lease.task_id);
    assert_eq!(code(world.post::<Renewed>(&path, Some(&stale), &()).await), "stale_lease");
    let renewed: Renewed = world.post(&path, Some(&lease.fence), &agent_api::Renew {}).await.unwrap();
    assert!(!renewed.cancel);
    world.halt().await;
}

#[tokio::test]
async fn a_lease_is_not_renewed_for_ever() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let path = format!("/v1/tasks/{}/renew", lease.task_id);
    let hours_later = async |hours: f64| {
        sqlx::query("UPDATE dispatcher.tasks SET granted_at = granted_at - $1::interval, permit_at = permit_at - $1::interval")
            .bind(std::time::Duration::from_secs_f64(hours * 3600.0))
            .execute(&world.pool)
            .await
            .unwrap();
        world.post::<Renewed>(&path, Some(&lease.fence), &agent_api::Renew {}).await
    };
    hours_later(5.1).await.unwrap();
    assert_eq!(code(hours_later(0.3).await), "stale_lease", "five hours are the limit of a job");
    world.halt().await;
}

#[tokio::test]
async fn a_report_counts_once() {
    let world = World::new(patient()).await;
    let job = world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    let lease = world.claim(&queued).await;
    world.finish(&lease, JobStatus::Success).await.unwrap();
    world.finish(&lease, JobStatus::Success).await.unwrap();
    let finished = world.job_finished(job).await;
    assert_eq!((finished.status, finished.reason), (JobStatus::Success, None));
    assert_eq!(world.all::<contracts::dispatcher::TaskFinished>().await.len(), 1);
    assert_eq!(
        *world.receiver.0.lock().unwrap(),
        vec![(lease.task_id, lease.epoch)],
        "the epoch was closed first"
    );
    let path = format!("/v1/tasks/{}/renew", lease.task_id);
    assert_eq!(
        code(world.post::<Renewed>(&path, Some(&lease.fence), &agent_api::Renew {}).await),
        "stale_lease"
    );
    world.halt().await;
}

#[tokio::test]
async fn the_source_names_the_repository_and_opens_it() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let source: Source =
        world.get(&format!("/v1/tasks/{}/source", lease.task_id), &lease.fence).await.unwrap();
    assert_eq!(source.url, "http://127.0.0.1:1/git/local/shop.git");
    let claims: SourceClaims = world.keys.open_claims("source", &source.password).unwrap();
    assert_eq!(claims.project_slug, "git/local/shop");
    world.halt().await;
}
