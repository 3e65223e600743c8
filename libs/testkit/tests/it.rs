//! Each caller has a database of its own.

#[tokio::test]
async fn databases_are_fresh_and_separate() {
    let (one, two) = tokio::join!(gantry_testkit::postgres(), gantry_testkit::postgres());
    sqlx::query("CREATE TABLE here (id int)").execute(&one.pool).await.unwrap();
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('here') IS NOT NULL").fetch_one(&two.pool).await.unwrap();
    assert!(!there);
    assert_ne!(one.url, two.url);
}
