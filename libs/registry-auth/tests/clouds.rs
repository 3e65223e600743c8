//! Against stand-ins for services of Amazon and Google, which are nobody's to run here.

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::HeaderMap,
    http::StatusCode,
    routing::post,
};
use gantry_registry_auth::{
    Endpoints, Error, Login,
    ecr::{Identity, Registry},
    google,
};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// What was asked, each a line: headers and body.
type Seen = Arc<Mutex<Vec<String>>>;

async fn ecr(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let of =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none").to_owned();
    let authorization = of("authorization");
    let mut seen = seen.lock().unwrap();
    seen.push(format!(
        "{} {} {} {} {}",
        of("x-amz-target"),
        of("content-type"),
        of("x-amz-security-token"),
        authorization,
        String::from_utf8_lossy(&body)
    ));
    // The first answer is lost on the way, as those of clouds are.
    if seen.len() == 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, "busy".to_owned());
    }
    if authorization.contains("AKIDWRONG") {
        let text = r#"{"__type":"UnrecognizedClientException","message":"The security token is invalid."}"#;
        return (StatusCode::BAD_REQUEST, text.to_owned());
    }
    // base64 of `AWS:secret-password`
    let text =
        r#"{"authorizationData":[{"authorizationToken":"QVdTOnNlY3JldC1wYXNzd29yZA==","expiresAt":1.7E9}]}"#;
    (StatusCode::OK, text.to_owned())
}

async fn sts(State(seen): State<Seen>, body: String) -> (StatusCode, String) {
    seen.lock().unwrap().push(body.clone());
    if body.contains("denied") {
        let text = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                    <Code>AccessDenied</Code><Message>Not authorized</Message></Error></ErrorResponse>";
        return (StatusCode::FORBIDDEN, text.to_owned());
    }
    let text = "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                <AssumeRoleWithWebIdentityResult><Audience>a</Audience><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>\
                <SecretAccessKey>of-role</SecretAccessKey><SessionToken>session</SessionToken>\
                <Expiration>2030-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
                </AssumeRoleWithWebIdentityResponse>";
    (StatusCode::OK, text.to_owned())
}

async fn google_sts(State(seen): State<Seen>, body: String) -> (StatusCode, String) {
    seen.lock().unwrap().push(body.clone());
    if body.contains("of-somebody") {
        let text = r#"{"error":"unauthorized_client","error_description":"The given credential is rejected by the attribute condition."}"#;
        return (StatusCode::BAD_REQUEST, text.to_owned());
    }
    (StatusCode::OK, r#"{"access_token":"federated","token_type":"Bearer","expires_in":3599}"#.to_owned())
}

async fn google_iam(
    State(seen): State<Seen>,
    Path(call): Path<String>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let authorization = headers["authorization"].to_str().unwrap();
    let mut seen = seen.lock().unwrap();
    seen.push(format!("{call} {authorization} {body}"));
    if call.starts_with("denied@") {
        let text =
            r#"{"error":{"code":403,"message":"Permission 'iam.serviceAccounts.getAccessToken' denied"}}"#;
        return (StatusCode::FORBIDDEN, text.to_owned());
    }
    (StatusCode::OK, r#"{"accessToken":"ya29.secret","expireTime":"2030-01-01T00:00:00Z"}"#.to_owned())
}

async fn cloud() -> (Endpoints, Seen) {
    let seen = Seen::default();
    let routes = Router::new()
        .route("/ecr/", post(ecr))
        .route("/sts/", post(sts))
        .route("/google/v1/token", post(google_sts))
        .route("/google/v1/projects/-/serviceAccounts/{call}", post(google_iam))
        .with_state(Arc::clone(&seen));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let google = Some(format!("{url}/google/"));
    let endpoints = Endpoints {
        ecr: Some(format!("{url}/ecr")),
        aws_sts: Some(format!("{url}/sts/")),
        google_sts: google.clone(),
        google_iam: google,
    };
    (endpoints, seen)
}

fn registry() -> Registry {
    Registry::of_image("123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/tool:1").unwrap()
}

fn key(id: &str) -> Identity {
    Identity::Key { id: id.to_owned(), secret: "of-key".to_owned().into() }
}

#[test]
fn registries_are_known_by_their_hosts() {
    for image in [
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/x",
        "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com/x@sha256:0",
    ] {
        assert!(Registry::of_image(image).is_some(), "{image}");
    }
    for image in [
        "cimg/base:stable",
        "public.ecr.aws/docker/library/x",
        "team.dkr.ecr.eu-west-1.amazonaws.com/x",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example/x/../y",
        "123456789012.dkr.ecr.eu-west-1.example.com/x",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    ] {
        assert!(Registry::of_image(image).is_none(), "{image}");
    }
}

#[tokio::test]
async fn a_key_becomes_a_password() {
    let (endpoints, seen) = cloud().await;
    let login = registry().login(&key("AKIDMINE"), &endpoints).await.unwrap();
    assert_eq!(login, Login { username: "AWS".into(), password: "secret-password".to_owned().into() });
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "it was asked again: {seen:?}");
    let asked = &seen[1];
    assert!(asked.starts_with("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken application/x-amz-json-1.1 none AWS4-HMAC-SHA256 Credential=AKIDMINE/"));
    assert!(
        asked.contains("/eu-west-1/ecr/aws4_request, SignedHeaders=") && asked.contains("x-amz-target"),
        "{asked}"
    );
    assert!(asked.ends_with(" {}") && !asked.contains("of-key"), "{asked}");
}

#[tokio::test]
async fn a_role_takes_the_jobs_token() {
    let (endpoints, seen) = cloud().await;
    let role = |arn: &str| Identity::Role {
        arn: arn.to_owned(),
        token: "header.claims.signature".to_owned().into(),
    };
    registry().login(&role("arn:aws:iam::123456789012:role/ci"), &endpoints).await.unwrap();
    let asked = seen.lock().unwrap().clone();
    assert!(asked[0].contains("RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fci"), "{asked:?}");
    assert!(asked[0].contains("WebIdentityToken=header.claims.signature"), "{asked:?}");
    assert!(asked.last().unwrap().contains(" session AWS4-HMAC-SHA256 Credential=ASIAROLE/"), "{asked:?}");

    let refused = registry().login(&role("denied"), &endpoints).await.unwrap_err();
    assert_eq!(refused.to_string(), "STS refused (403): Not authorized");
}

#[tokio::test]
async fn a_refusal_is_told_without_the_key() {
    let (endpoints, _) = cloud().await;
    let refused = registry().login(&key("AKIDWRONG"), &endpoints).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { status: 400, .. }), "{refused}");
    assert_eq!(refused.to_string(), "ECR refused (400): The security token is invalid.");
    let nobody = Endpoints { ecr: Some("http://127.0.0.1:1".into()), ..Endpoints::default() };
    let away = registry().login(&key("AKIDMINE"), &nobody).await.unwrap_err().to_string();
    assert!(away.starts_with("ECR does not answer: ") && !away.contains("127.0.0.1"), "{away}");
}

const POOL: &str = "projects/12/locations/global/workloadIdentityPools/ci";

fn account(name: &str, token: &str) -> google::Identity {
    let token = token.to_owned().into();
    google::Identity::new(&format!("{name}@team.iam.gserviceaccount.com"), POOL, "gantry", token).unwrap()
}

#[test]
fn googles_registries_are_known_by_their_hosts() {
    for image in ["europe-west1-docker.pkg.dev/team/tools/x:1", "gcr.io/team/x", "eu.gcr.io/team/x@sha256:0"]
    {
        assert!(google::holds(image), "{image}");
    }
    for image in
        ["cimg/base:1", "gcr.io", "evil-gcr.io/x", "docker.pkg.dev.example.com/x", "gcr.io.example.com/x"]
    {
        assert!(!google::holds(image), "{image}");
    }
}

#[test]
fn a_provider_has_the_number_of_its_project() {
    let new = |account: &str, pool: &str, provider: &str| {
        google::Identity::new(account, pool, provider, "t".to_owned().into())
    };
    let whole = format!("{POOL}/providers/gantry");
    let first = new("a@b.c", POOL, "gantry").unwrap();
    for (pool, provider) in [("ci", whole.as_str()), ("", &format!("//iam.googleapis.com/{whole}"))] {
        assert_eq!(new("a@b.c", pool, provider).unwrap(), first);
    }
    assert!(new("a@b.c", "ci", "gantry").unwrap_err().contains("workloadIdentityPools/ci"));
    assert!(new("a@b.c", "projects/12/pools/ci", "gantry").unwrap_err().contains("names no provider"));
    for account in ["", "a", "a/../b@c", "a@b?c", "@b"] {
        assert!(new(account, POOL, "gantry").unwrap_err().contains("not the address"), "{account}");
    }
}

#[tokio::test]
async fn a_service_account_takes_the_jobs_token() {
    let (endpoints, seen) = cloud().await;
    let login = google::login(&account("ci", "header.claims.signature"), &endpoints).await.unwrap();
    let expected = Login { username: "oauth2accesstoken".into(), password: "ya29.secret".to_owned().into() };
    assert_eq!(login, expected);
    let asked = seen.lock().unwrap().clone();
    let first: serde_json::Value = serde_json::from_str(&asked[0]).unwrap();
    assert_eq!(first["audience"], format!("//iam.googleapis.com/{POOL}/providers/gantry"));
    assert_eq!(first["subjectToken"], "header.claims.signature");
    assert!(
        asked[1].starts_with("ci@team.iam.gserviceaccount.com:generateAccessToken Bearer federated "),
        "{asked:?}"
    );

    let refused = google::login(&account("ci", "of-somebody"), &endpoints).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "Google STS refused (400): The given credential is rejected by the attribute condition."
    );
    let refused = google::login(&account("denied", "t"), &endpoints).await.unwrap_err().to_string();
    assert_eq!(refused, "Google IAM refused (403): Permission 'iam.serviceAccounts.getAccessToken' denied");
}
