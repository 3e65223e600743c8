//! SSH keys of projects: who gets which, and who never sees one.

use super::*;

async fn add(
    suite: &Suite,
    project: &Project,
    host: Option<&str>,
    text: &str,
) -> Result<SshKeyInfo, RequestError> {
    let sealed = B64.encode(suite.ring.encrypt(contexts::REQUEST_LABEL, text.as_bytes()).await.unwrap());
    let ask = AddSshKey { project_id: project.id, hostname: host.map(str::to_owned), sealed };
    suite.bus.ask(&suite.user, &ask).await
}

/// A private key as people paste it, made by the service itself.
async fn made(suite: &Suite) -> String {
    let elsewhere = project();
    let ask = MakeCheckoutKey { project_id: elsewhere.id, kind: "deploy-key".into() };
    suite.bus.ask(&suite.user, &ask).await.unwrap();
    let checkout =
        Step::Checkout { path: None, method: Default::default(), name: None, when: Default::default() };
    let task = Task::of(suite.ready_with(&elsewhere, &[], None, vec![checkout]).await);
    let (_, body) = suite.get(task.id, &task.fence(suite)).await;
    task.opened(&body).checkout_key.unwrap().private_key
}

fn wanting(fingerprints: &[&str]) -> Vec<Step> {
    let fingerprints = fingerprints.iter().map(|&text| text.to_owned()).collect();
    vec![Step::AddSshKeys { fingerprints, name: "keys".into(), when: Default::default() }]
}

#[tokio::test]
async fn a_job_gets_the_keys_that_it_asks_for_and_no_others() {
    let suite = suite().await;
    let project = project();
    let (one, two) = (made(&suite).await, made(&suite).await);
    let one = add(&suite, &project, Some("git.example"), &one).await.unwrap();
    let two = add(&suite, &project, None, &two.replace('\n', "\r\n")).await.unwrap();
    let ask = ListSshKeys { project_id: project.id, purpose: SshKeyPurpose::Additional };
    assert_eq!(suite.bus.ask(&suite.user, &ask).await.unwrap(), [one.clone(), two.clone()]);

    for (steps, expected) in [
        (wanting(&[]), vec![&one, &two]),
        (wanting(&[&two.md5]), vec![&two]),
        (wanting(&[&one.sha256, "aa:bb"]), vec![&one]),
        (Vec::new(), vec![]),
    ] {
        let task = Task::of(suite.ready_with(&project, &[], None, steps).await);
        let (status, body) = suite.get(task.id, &task.fence(&suite)).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let got = task.opened(&body);
        assert!(got.checkout_key.is_none());
        let got: Vec<_> = got.ssh_keys.into_iter().map(|key| (key.sha256, key.hostname)).collect();
        let expected: Vec<_> =
            expected.iter().map(|key| (key.sha256.clone(), key.hostname.clone())).collect();
        assert_eq!(got, expected);
    }

    let remove = RemoveSshKey {
        project_id: project.id,
        purpose: SshKeyPurpose::Additional,
        fingerprint: one.md5.clone(),
        hostname: None,
    };
    suite.bus.ask(&suite.user, &remove).await.unwrap();
    assert_eq!(refused(suite.bus.ask(&suite.user, &remove).await.unwrap_err()), "not_found");
    assert_eq!(suite.bus.ask(&suite.user, &ask).await.unwrap(), [two]);
}

#[tokio::test]
async fn a_key_that_no_job_could_use_is_refused_with_the_way_out() {
    let suite = suite().await;
    let project = project();
    let key = made(&suite).await;
    add(&suite, &project, None, &key).await.unwrap();
    assert_eq!(refused(add(&suite, &project, None, &key).await.unwrap_err()), "exists");
    add(&suite, &project, Some("another.example"), &key).await.unwrap();
    for (host, text) in [
        (None, "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"),
        (None, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"),
        (Some("a b"), &*key),
        (Some("a\nProxyCommand x"), &*key),
    ] {
        assert_eq!(refused(add(&suite, &project, host, text).await.unwrap_err()), "invalid", "{host:?}");
    }
    let everything: String = sqlx::query_scalar(
        "SELECT coalesce((SELECT string_agg(body::text, '') FROM contexts.events), '')
             || coalesce((SELECT string_agg(answer::text, '') FROM contexts.idempotency), '')
             || coalesce((SELECT string_agg(detail::text, '') FROM contexts.acts), '')",
    )
    .fetch_one(&suite.db.pool)
    .await
    .unwrap();
    let secret = key.lines().nth(2).unwrap();
    assert!(!everything.contains(secret), "{everything}");
}
