//! The directory on a real database, asked over the bus.

use bus::{AskOptions, Bus};
use contracts::{Actor, RequestError, domain::*};
use gantry_domain as domain;
use ids::{MessageId, TokenId, UserId};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

struct Suite {
    db: testkit::TestDb,
    bus: Bus,
    _stop: tokio_util::sync::DropGuard,
}

async fn suite() -> Suite {
    let db = testkit::postgres().await;
    let bus = Bus::local(db.pool.clone());
    let stop = CancellationToken::new();
    domain::start(domain::Deps { pool: db.pool.clone(), bus: bus.clone() }, stop.clone()).await.unwrap();
    Suite { db, bus, _stop: stop.drop_guard() }
}

fn system() -> Actor {
    Actor::service("test")
}

fn hash(of: &str) -> String {
    eventstore::digest(&of.into())
}

fn refused(error: RequestError) -> String {
    match error {
        RequestError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

async fn admin(suite: &Suite) -> Actor {
    let user = suite.bus.ask(&system(), &Bootstrap { token_sha256: hash("first") }).await.unwrap();
    Actor::User { id: user.id }
}

async fn kinds(suite: &Suite) -> Vec<String> {
    sqlx::query_scalar("SELECT kind FROM domain.events ORDER BY seq").fetch_all(&suite.db.pool).await.unwrap()
}

#[tokio::test]
async fn processes_that_start_together_make_one_administrator() {
    let suite = suite().await;
    let ask = Bootstrap { token_sha256: hash("first") };
    let (me, all) = (system(), std::iter::repeat_n((), 8));
    let answers = futures::future::join_all(all.map(|()| suite.bus.ask(&me, &ask))).await;
    let first = answers[0].as_ref().unwrap().id;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|user| user.id == first)), "{answers:?}");
}

#[tokio::test]
async fn bootstrap_happens_once_and_can_replace_the_token() {
    let suite = suite().await;
    let first = suite.bus.ask(&system(), &Bootstrap { token_sha256: hash("first") }).await.unwrap();
    assert_eq!((&*first.login, first.admin), ("admin", true));
    let again = suite.bus.ask(&system(), &Bootstrap { token_sha256: hash("first") }).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(kinds(&suite).await, ["user.created", "org.created", "token.created"]);

    let verify = |token: &'static str| {
        let bus = suite.bus.clone();
        async move { bus.ask(&system(), &VerifyToken { sha256: hash(token) }).await }
    };
    assert_eq!(verify("first").await.unwrap(), first);
    suite.bus.ask(&system(), &Bootstrap { token_sha256: hash("second") }).await.unwrap();
    assert_eq!(refused(verify("first").await.unwrap_err()), "unauthenticated");
    assert_eq!(verify("second").await.unwrap(), first);
    assert_eq!(kinds(&suite).await[3..], ["token.revoked", "token.created"]);

    let orgs = suite.bus.ask(&system(), &ListOrgs {}).await.unwrap();
    assert_eq!(orgs.iter().map(|org| &*org.name).collect::<Vec<_>>(), ["local"]);
    assert_eq!(
        refused(suite.bus.ask(&system(), &Bootstrap { token_sha256: "x".into() }).await.unwrap_err()),
        "invalid"
    );
}

#[tokio::test]
async fn tokens_belong_to_their_user_and_stay_revoked() {
    let suite = suite().await;
    let admin = admin(&suite).await;
    let create = CreateToken { label: "laptop".into(), sha256: hash("t") };
    let options = || AskOptions {
        id: Some(MessageId::new()),
        idempotency_key: Some("k".into()),
        deadline: Duration::from_secs(5),
    };
    let token = suite.bus.ask_with(options(), &admin, &create).await.unwrap();
    assert_eq!(
        suite.bus.ask_with(options(), &admin, &create).await.unwrap(),
        token,
        "a repeat is answered as before"
    );
    let other = CreateToken { label: "other".into(), sha256: hash("o") };
    assert_eq!(
        refused(suite.bus.ask_with(options(), &admin, &other).await.unwrap_err()),
        "idempotency_key_reused"
    );
    assert_eq!(refused(suite.bus.ask(&admin, &create).await.unwrap_err()), "exists");
    assert_eq!(suite.bus.ask(&admin, &ListTokens {}).await.unwrap().len(), 2);

    let stranger = Actor::User { id: UserId::new() };
    let revoke = RevokeToken { id: token.id };
    assert_eq!(refused(suite.bus.ask(&stranger, &revoke).await.unwrap_err()), "not_found");
    assert_eq!(
        refused(suite.bus.ask(&admin, &RevokeToken { id: TokenId::new() }).await.unwrap_err()),
        "not_found"
    );
    suite.bus.ask(&admin, &revoke).await.unwrap();
    suite.bus.ask(&admin, &revoke).await.unwrap();
    assert_eq!(
        refused(suite.bus.ask(&admin, &VerifyToken { sha256: hash("t") }).await.unwrap_err()),
        "unauthenticated"
    );
    assert_eq!(refused(suite.bus.ask(&system(), &create).await.unwrap_err()), "forbidden");

    let revive =
        sqlx::query("UPDATE domain.tokens SET revoked_at = NULL WHERE id = $1").bind(token.id.uuid());
    assert!(revive.execute(&suite.db.pool).await.is_err(), "a revoked token is final");
}

#[tokio::test]
async fn a_project_is_made_once_and_found_under_every_name() {
    let suite = suite().await;
    let admin = admin(&suite).await;
    let ensure = EnsureProject { org: "local".into(), repo: "demo.app".into() };
    let both = futures::future::join_all((0..5).map(|_| suite.bus.ask(&admin, &ensure))).await;
    let project = both[0].clone().unwrap();
    assert!(both.into_iter().all(|each| each.unwrap() == project), "all asked for the same project");
    assert_eq!(kinds(&suite).await.iter().filter(|kind| *kind == "project.created").count(), 1);
    assert_eq!((&*project.slug, &*project.default_branch), ("git/local/demo.app", "main"));

    let short = |id: uuid::Uuid| bs58::encode(id.as_bytes()).into_string();
    let by_ids = format!("circleci/{}/{}", short(project.org_id.uuid()), short(project.id.uuid()));
    for reference in [project.slug.clone(), by_ids, project.id.to_string()] {
        assert_eq!(suite.bus.ask(&admin, &GetProject { reference }).await.unwrap(), project);
    }
    let swapped = format!("circleci/{}/{}", short(project.id.uuid()), short(project.id.uuid()));
    let none = [
        "gh/local/demo.app",
        "git/local/none",
        "git/local",
        "git/local/demo.app/x",
        "circleci/x/0",
        "",
        &swapped,
    ];
    for reference in none {
        let asked = suite.bus.ask(&admin, &GetProject { reference: reference.into() }).await;
        assert_eq!(refused(asked.unwrap_err()), "not_found", "{reference:?}");
    }
    assert_eq!(suite.bus.ask(&admin, &ListProjects {}).await.unwrap(), [project]);

    for (org, repo, code) in [
        ("none", "demo", "not_found"),
        ("local", "..", "invalid"),
        ("local", "a/b", "invalid"),
        ("local", "x.git", "invalid"),
    ] {
        let ensure = EnsureProject { org: org.into(), repo: repo.into() };
        assert_eq!(refused(suite.bus.ask(&admin, &ensure).await.unwrap_err()), code, "{org}/{repo}");
    }
}

#[tokio::test]
async fn logins_ride_in_the_personal_part_only() {
    let suite = suite().await;
    admin(&suite).await;
    let (body, personal): (String, String) =
        sqlx::query_as("SELECT body::text, personal::text FROM domain.events WHERE kind = 'user.created'")
            .fetch_one(&suite.db.pool)
            .await
            .unwrap();
    assert!(!body.contains("\"login\""), "{body}");
    assert!(personal.contains("\"login\""), "{personal}");
}

#[tokio::test]
async fn people_register_public_keys_of_their_own() {
    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUDVpLFlN0OoYlKvSXMCcLZIoWqkVgKwyTOmdWvgpB/ ada@example.com";
    let suite = suite().await;
    let admin = admin(&suite).await;
    let other = UserId::new();
    sqlx::query("INSERT INTO domain.users (id, login) VALUES ($1, 'other')")
        .bind(other.uuid())
        .execute(&suite.db.pool)
        .await
        .unwrap();
    let other = Actor::User { id: other };
    let add =
        |label: Option<&str>| AddUserKey { public_key: format!("{KEY}\n"), label: label.map(str::to_owned) };
    let key = suite.bus.ask(&admin, &add(None)).await.unwrap();
    assert_eq!((key.public_key.as_str(), key.label.as_str()), (KEY, "ada@example.com"));
    assert_eq!(refused(suite.bus.ask(&admin, &add(None)).await.unwrap_err()), "exists");
    // Two people may share one.
    let theirs = suite.bus.ask(&other, &add(Some(" desk "))).await.unwrap();
    assert_eq!((theirs.sha256.as_str(), theirs.label.as_str()), (key.sha256.as_str(), "desk"));
    let listed = suite.bus.ask(&admin, &ListUserKeys {}).await.unwrap();
    assert_eq!((listed.login.as_str(), listed.keys), ("admin", vec![key.clone()]));
    let remove = RemoveUserKey { sha256: key.sha256.clone() };
    suite.bus.ask(&admin, &remove).await.unwrap();
    assert_eq!(refused(suite.bus.ask(&admin, &remove).await.unwrap_err()), "not_found");
    assert!(suite.bus.ask(&admin, &ListUserKeys {}).await.unwrap().keys.is_empty());
    assert_eq!(suite.bus.ask(&other, &ListUserKeys {}).await.unwrap().keys, [theirs]);
    let nonsense = AddUserKey { public_key: "ssh-ed25519 nonsense".into(), label: None };
    assert_eq!(refused(suite.bus.ask(&admin, &nonsense).await.unwrap_err()), "invalid");
    assert_eq!(refused(suite.bus.ask(&system(), &add(None)).await.unwrap_err()), "forbidden");
    assert_eq!(kinds(&suite).await[3..], ["user.key_added", "user.key_added", "user.key_removed"]);
}
