//! A process that may not migrate. A program of its own: the setting is one of the whole process.

use eventstore::{Error, NO_MIGRATIONS, Store};
use gantry_server::migrate;

#[tokio::test]
async fn a_service_beside_others_changes_no_schema() {
    let pool = testkit::postgres().await.pool;
    migrate::all(&pool.clone().into()).await.unwrap();
    sqlx::query("DELETE FROM contexts._sqlx_migrations WHERE version = (SELECT max(version) FROM contexts._sqlx_migrations)")
        .execute(&pool)
        .await
        .unwrap();
    eventstore::never_migrate();
    Store::open(pool.clone(), "conductor", &conductor::MIGRATOR).await.unwrap();
    // A newer one than this build knows is used as it is.
    Store::open(pool.clone(), "domain", &NO_MIGRATIONS).await.unwrap();
    let error = Store::open(pool.clone(), "contexts", &contexts::MIGRATOR).await.unwrap_err();
    assert!(
        matches!(error, Error::OldSchema { .. }) && error.to_string().contains("gantry admin migrate"),
        "{error}"
    );
    let error = Store::open(pool.clone(), "unheard-of", &conductor::MIGRATOR).await.unwrap_err();
    assert!(matches!(error, Error::OldSchema { found: 0, .. }), "{error}");
    let made: bool = sqlx::query_scalar("SELECT to_regnamespace('unheard_of') IS NOT NULL")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(!made);
}
