//! The key ring adapter.

use gantry_secrets::{Error, Keyring, Secrets, contract};
use std::{fs, os::unix::fs::PermissionsExt};

#[tokio::test]
async fn keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract::all(&Keyring::open_or_create(folder.path().join("ring")).unwrap()).await;
}

#[tokio::test]
async fn a_second_start_and_a_second_process_read_the_same_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ring");
    let (one, two) = (Keyring::open_or_create(&path).unwrap(), Keyring::open_or_create(&path).unwrap());
    one.rotate().await.unwrap();
    let sealed = one.encrypt("l", b"v").await.unwrap();
    assert_eq!(&**two.decrypt("l", &sealed).await.unwrap(), b"v");
    assert_eq!(&**Keyring::open_or_create(&path).unwrap().decrypt("l", &sealed).await.unwrap(), b"v");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left behind");
}

#[test]
fn the_file_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ring");
    Keyring::open_or_create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Keyring::open_or_create(&path), Err(Error::Store(_))));
}
