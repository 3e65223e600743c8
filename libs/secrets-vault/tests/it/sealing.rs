//! A Vault that is sealed while services work (reliability F33).

use crate::vault::Admin;
use reqwest::Method;
use secrets::{Error, Secrets};
use serde_json::{Value, json};
use std::{error::Error as _, time::Duration};
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn a_sealed_vault_fails_closed_and_comes_back() {
    let Some(address) = testkit::sealable_vault().await else { return };
    let nobody = Admin::new(&address, "");
    let made = nobody.call(Method::PUT, "sys/init", json!({"secret_shares": 3, "secret_threshold": 2})).await;
    let shares: Vec<Value> = made["keys_base64"].as_array().unwrap().clone();
    let unseal = async || {
        for share in &shares[..2] {
            nobody.call(Method::PUT, "sys/unseal", json!({ "key": share })).await;
        }
        let limit = Instant::now() + Duration::from_secs(30);
        while nobody.answer(Method::GET, "sys/health", &Value::Null).await.0 != 200 {
            assert!(Instant::now() < limit, "it does not become active");
            sleep(Duration::from_millis(50)).await;
        }
    };
    unseal().await;
    let admin = Admin::new(&address, made["root_token"].as_str().unwrap());
    let adapter = admin.both("gantry", json!({})).await;
    let sealed = adapter.encrypt("label", b"value").await.unwrap();

    admin.call(Method::PUT, "sys/seal", json!({})).await;
    let begun = Instant::now();
    for refused in [
        adapter.encrypt("label", b"value").await.map(drop),
        adapter.decrypt("label", &sealed).await.map(drop),
    ] {
        match refused {
            Err(Error::Store(error)) => {
                let text = format!("{error} {:?}", error.source());
                assert!(text.contains("sealed"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "it says so, and does not hang");

    unseal().await;
    assert_eq!(&**adapter.decrypt("label", &sealed).await.unwrap(), b"value");
    adapter.encrypt("label", b"value").await.unwrap();
}
