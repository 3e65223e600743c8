//! The adapter on a real Vault.

mod sealing;
mod vault;

use secrets::{Error, Secrets};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use vault::Admin;

async fn admin() -> Option<Admin> {
    let vault = testkit::vault().await?;
    Some(Admin::new(&vault.address, &vault.root_token))
}

#[tokio::test]
async fn the_vault_adapter_keeps_the_contract() {
    let Some(admin) = admin().await else { return };
    secrets::contract::all(&admin.both("contract", json!({})).await).await;
}

#[tokio::test]
async fn who_seals_cannot_open_and_who_opens_cannot_seal() {
    let Some(admin) = admin().await else { return };
    admin.prepare("split").await;
    let write = admin.role("split", &["write"], json!({})).await;
    let deliver = admin.role("split", &["deliver"], json!({})).await;
    let writer = admin.adapter("split", write.clone(), None);
    let sealed = writer.encrypt("label", b"value").await.unwrap();
    assert!(matches!(writer.decrypt("label", &sealed).await, Err(Error::Store(_))), "no login that opens");
    writer.rewrap("label", &sealed).await.unwrap();
    let refused = writer.rotate().await.unwrap_err();
    assert!(format!("{refused:?}").contains("403"), "{refused:?}");
    assert_eq!(writer.newest().await.unwrap(), 1, "it could not rotate");

    // Given each other's, Vault itself refuses.
    let crossed = admin.adapter("split", deliver.clone(), Some(write.clone()));
    assert!(matches!(crossed.encrypt("label", b"value").await, Err(Error::Store(_))));
    assert!(matches!(crossed.decrypt("label", &sealed).await, Err(Error::Store(_))));
    let whole = admin.adapter("split", write, Some(deliver));
    assert_eq!(&**whole.decrypt("label", &sealed).await.unwrap(), b"value");
}

#[tokio::test]
async fn a_key_under_which_labels_mean_nothing_is_refused() {
    let Some(admin) = admin().await else { return };
    admin.prepare("good").await;
    admin.post("transit/keys/plain", json!({})).await;
    for (key, why) in [("plain", "derived"), ("missing", "no key")] {
        for policy in ["write", "deliver"] {
            let text = gantry_secrets_vault::WRITE_POLICY.replace("/gantry", &format!("/{key}"));
            admin.post(&format!("sys/policies/acl/{key}-{policy}"), json!({ "policy": text })).await;
        }
        let adapter = admin.adapter(key, admin.role(key, &["write"], json!({})).await, None);
        match adapter.encrypt("label", b"value").await {
            Err(Error::Store(error)) => assert!(error.to_string().contains(why), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn tokens_are_renewed_and_taken_anew_when_they_end() {
    let Some(admin) = admin().await else { return };
    // Each is renewed after two seconds, and lives for six at most.
    let adapter = admin.both("brief", json!({"token_ttl": "3s", "token_max_ttl": "6s"})).await;
    let sealed = adapter.encrypt("label", b"value").await.unwrap();
    let end = Instant::now() + Duration::from_secs(9);
    while Instant::now() < end {
        assert_eq!(&**adapter.decrypt("label", &sealed).await.unwrap(), b"value");
        adapter.encrypt("label", b"value").await.unwrap();
        sleep(Duration::from_millis(250)).await;
    }
    // What ends them all at once, as a restored Vault would.
    admin.post("sys/leases/revoke-prefix/auth/approle", json!({})).await;
    assert_eq!(&**adapter.decrypt("label", &sealed).await.unwrap(), b"value");
    adapter.encrypt("label", b"value").await.unwrap();
}

#[tokio::test]
async fn a_token_in_use_is_renewed_rather_than_taken_anew() {
    let Some(admin) = admin().await else { return };
    // A secret that is good for one login.
    let adapter = admin.both("once", json!({"token_ttl": "3s", "secret_id_num_uses": 1})).await;
    let sealed = adapter.encrypt("label", b"value").await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert_eq!(&**adapter.decrypt("label", &sealed).await.unwrap(), b"value");
        adapter.encrypt("label", b"value").await.unwrap();
        sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
async fn values_open_while_the_key_is_rotated() {
    let Some(admin) = admin().await else { return };
    let adapter = admin.both("busy", json!({})).await;
    let work = async {
        for n in 0..40u32 {
            let value = n.to_be_bytes();
            let sealed = adapter.encrypt("label", &value).await.unwrap();
            let sealed = adapter.rewrap("label", &sealed).await.unwrap();
            assert_eq!(&**adapter.decrypt("label", &sealed).await.unwrap(), &value);
        }
    };
    let rotate = async {
        for _ in 0..5 {
            adapter.rotate().await.unwrap();
        }
    };
    tokio::join!(work, rotate);
    assert_eq!(adapter.newest().await.unwrap(), 6);
}

#[tokio::test]
async fn the_value_and_the_login_are_in_no_error() {
    let Some(admin) = admin().await else { return };
    let _ = admin;
    let role = gantry_secrets_vault::AppRole {
        role_id: "role".to_owned(),
        secret_id: "hidden-id".to_owned().into(),
    };
    let away = Admin::new("http://127.0.0.1:1", "").adapter("gantry", role, None);
    let begun = Instant::now();
    let error = away.encrypt("label", b"hidden-value").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(12), "it fails within its patience");
    let shown = format!("{error:?} {error} {away:?}");
    assert!(shown.contains("127.0.0.1:1") && !shown.contains("hidden"), "{shown}");
}
