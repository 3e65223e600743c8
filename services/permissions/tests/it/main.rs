//! Grants follow the directory; checks are answered from them.

use bus::Bus;
use contracts::{Actor, NewEvent, RequestError, domain::UserCreated, permissions::CheckPermission};
use eventstore::{NO_MIGRATIONS, Store};
use gantry_permissions as permissions;
use ids::{OrgId, UserId};
use tokio_util::sync::CancellationToken;

async fn announce(directory: &Store, user_id: UserId, admin: bool) {
    let mut tx = directory.begin(&[]).await.unwrap();
    let body = UserCreated { user_id, admin };
    tx.append(&[NewEvent::new("user", user_id.uuid(), Actor::service("test"), &body)]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn an_administrator_may_everything_and_a_user_without_a_role_nothing() {
    let db = testkit::postgres().await;
    let bus = Bus::local(db.pool.clone());
    let stop = CancellationToken::new();
    let directory = Store::open(db.pool.clone(), "domain", &NO_MIGRATIONS).await.unwrap();
    bus.register_source(&directory);
    let deps = permissions::Deps { pool: db.pool.clone(), bus: bus.clone() };
    let service = permissions::start(deps, stop.clone()).await.unwrap();

    let (admin, plain) = (UserId::new(), UserId::new());
    announce(&directory, admin, true).await;
    announce(&directory, plain, false).await;
    let check = |user_id, permission: &str| {
        let (bus, ask) =
            (bus.clone(), CheckPermission { user_id, permission: permission.into(), org_id: OrgId::new() });
        async move { bus.ask(&Actor::service("test"), &ask).await }
    };
    // Right after the news: the check waits for the group.
    for permission in model::permission::Permission::ALL {
        assert!(check(admin, permission.as_str()).await.unwrap(), "{permission}");
        assert!(!check(plain, permission.as_str()).await.unwrap(), "{permission}");
    }
    assert!(!check(UserId::new(), "read").await.unwrap(), "nobody knows this user");
    assert!(
        matches!(check(admin, "everything").await, Err(RequestError::Refused(no)) if no.code == "invalid")
    );

    let granted: Vec<String> =
        sqlx::query_scalar("SELECT body->>'role' FROM permissions.events WHERE kind = 'role.granted'")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(granted, ["admin"]);
    stop.cancel();
    service.join().await.unwrap();
}
