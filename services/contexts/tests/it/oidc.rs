//! OIDC tokens of jobs, verified as anybody would: by the published keys.

use super::*;
use agent_api::{MintToken, MintedToken};
use chrono::{DateTime, TimeDelta, Utc};
use contexts::{Rotation, rotation};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};

impl Suite {
    /// The published keys, once there are so many.
    pub(crate) async fn oidc_keys(&self, count: usize) -> JwkSet {
        for _ in 0..500 {
            let keys = self.bus.ask(&self.user, &GetJwks {}).await.unwrap();
            assert!(!keys.to_string().contains("\"d\""), "private halves stay here");
            let keys: JwkSet = serde_json::from_value(keys).unwrap();
            if keys.keys.len() >= count {
                return keys;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the keys were not made");
    }

    async fn claims(&self, token: &str, audience: &str, issuer: &str) -> Value {
        let keys = self.oidc_keys(1).await;
        let header = jsonwebtoken::decode_header(token).unwrap();
        let key = keys.find(&header.kid.unwrap()).expect("the key is published");
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[issuer]);
        validation.validate_nbf = true;
        jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(key).unwrap(), &validation)
            .unwrap()
            .claims
    }

    async fn mint(&self, task: &Task, fence: &str, ask: &MintToken) -> (u16, Vec<u8>) {
        let request = http::Request::post(format!("/v1/tasks/{}/oidc", task.id))
            .header("authorization", format!("Bearer {fence}"))
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(ask).unwrap()))
            .unwrap();
        let response = self.service.agent_router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }
}

#[tokio::test]
async fn a_job_has_tokens_that_the_published_keys_verify() {
    let suite = suite().await;
    let project = project();
    let user = UserId::new();
    suite.grant(user, "contributor").await;
    let context = suite.context(project.org_id, "deploy").await;
    let task = Task::of(suite.ready(&project, &["deploy"], Some(user)).await);
    let (_, body) = suite.get(task.id, &task.fence(&suite)).await;
    let variables = task.opened(&body).variables;
    let token = |name: &str| variables.iter().find(|(set, _)| set == name).unwrap().1.clone();
    let (org, issuer) = (project.org_id.to_string(), format!("https://ci.example/org/{}", project.org_id));

    let first = suite.claims(&token("CIRCLE_OIDC_TOKEN"), &org, &issuer).await;
    let subject = format!("org/{org}/project/{}/user/{user}", project.id);
    assert_eq!(first["sub"], subject.as_str());
    assert_eq!(first["exp"].as_i64().unwrap() - first["iat"].as_i64().unwrap(), 3600);
    assert_eq!(first["oidc.circleci.com/project-id"], project.id.to_string());
    assert_eq!(first["oidc.circleci.com/context-ids"], json!([context.id]));
    assert_eq!(first["oidc.circleci.com/vcs-origin"], "ci.example/git/local/demo");
    assert_eq!(first["oidc.circleci.com/vcs-ref"], "refs/heads/main");
    assert_eq!(first["oidc.circleci.com/job-id"], task.claims.job_id.to_string());
    assert_eq!(first["oidc.circleci.com/ssh-rerun"], false);

    let second = suite.claims(&token("CIRCLE_OIDC_TOKEN_V2"), &org, &issuer).await;
    let origin = "vcs-origin/ci.example/git/local/demo/vcs-ref/refs/heads/main";
    assert_eq!(second["sub"], format!("{subject}/{origin}"));
    assert_ne!(first["jti"], second["jti"]);

    let ask = MintToken { audience: vec!["sts.example".into()], root_issuer: true };
    let (status, body) = suite.mint(&task, &task.fence(&suite), &ask).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let minted: MintedToken = serde_json::from_slice(&body).unwrap();
    let minted = suite.claims(&minted.token, "sts.example", "https://ci.example").await;
    assert_eq!((&minted["aud"], &minted["sub"]), (&json!("sts.example"), &second["sub"]));
}

#[tokio::test]
async fn no_lease_no_token() {
    let suite = suite().await;
    let mut task = Task::of(suite.ready(&project(), &[], None).await);
    let ask = MintToken::default();
    assert_eq!(suite.mint(&task, "x.y", &ask).await.0, 401);
    task.claims.expires_at = 1;
    assert_eq!(suite.mint(&task, &task.fence(&suite), &ask).await.0, 401);
    let task = Task::of(suite.ready(&project(), &[], None).await);
    let many = MintToken { audience: vec!["a".into(); 11], root_issuer: false };
    assert_eq!(suite.mint(&task, &task.fence(&suite), &many).await.0, 422);
}

#[tokio::test]
async fn an_older_key_verifies_its_tokens_after_the_next_one_signs() {
    let mut suite = suite().await;
    let project = project();
    let keys = suite.oidc_keys(2).await;
    let signer = async |suite: &Suite| {
        let task = Task::of(suite.ready(&project, &[], None).await);
        let (_, body) = suite.get(task.id, &task.fence(suite)).await;
        let token = task.opened(&body).variables.pop().unwrap().1;
        suite
            .claims(
                &token,
                &project.org_id.to_string(),
                &format!("https://ci.example/org/{}", project.org_id),
            )
            .await;
        jsonwebtoken::decode_header(&token).unwrap().kid.unwrap()
    };
    let before = signer(&suite).await;
    // The month passes.
    sqlx::query("UPDATE contexts.oidc_keys SET signs_from = signs_from - interval '30 days 1 hour'")
        .execute(&suite.db.pool)
        .await
        .unwrap();
    assert_eq!(signer(&suite).await, before, "a process keeps the key for some seconds");
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    suite.service = contexts::start(suite.deps(), stop).await.unwrap();
    let after = signer(&suite).await;
    assert_ne!(before, after);
    assert!(keys.find(&after).is_some(), "it was published before it signed");
    assert!(suite.oidc_keys(2).await.find(&before).is_some());
}

#[test]
fn two_keys_are_published_and_old_ones_stay_for_their_tokens() {
    let at = |hours: i64| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::hours(hours);
    let month = 30 * 24;
    let none = Rotation { forget: vec![], make: None };
    let make = |hours| Rotation { forget: vec![], make: Some(at(hours)) };
    assert_eq!(rotation(&[], at(0)), make(0));
    assert_eq!(rotation(&[at(0)], at(0)), make(month));
    assert_eq!(rotation(&[at(0), at(month)], at(1)), none);
    // The second one signs: a third is made, and the first stays until its tokens have ended.
    let three = [at(0), at(month), at(2 * month)];
    assert_eq!(rotation(&three[..2], at(month)), make(2 * month));
    assert_eq!(rotation(&three, at(month + 25)), none);
    assert_eq!(rotation(&three, at(month + 26)), Rotation { forget: vec![at(0)], make: None });
    // An installation that stood still for a year does not sign with a key that nobody has seen.
    let year = 365 * 24;
    assert_eq!(rotation(&three[..2], at(year)).make, Some(at(year + 25)));
}
