//! What every adapter of the port must do. Each function panics where the adapter breaks the promise, so
//! that an adapter's test is one call of [`all`].

use crate::{Error, Secrets};

/// The whole suite. The adapter may hold other values; none is touched. It ends with retired keys.
pub async fn all(secrets: &dyn Secrets) {
    round_trip(secrets).await;
    moved_is_refused(secrets).await;
    altered_is_refused(secrets).await;
    together(secrets).await;
    rotation(secrets).await;
}

/// A value comes back as it was, and two sealings of it differ.
pub async fn round_trip(secrets: &dyn Secrets) {
    for plain in [&b""[..], b"x", &[0xff; 32 * 1024]] {
        let first = secrets.encrypt("round", plain).await.expect("encrypts");
        let second = secrets.encrypt("round", plain).await.expect("encrypts");
        assert_ne!(first, second, "equal values must not show as equal ciphertexts");
        assert_eq!(&**secrets.decrypt("round", &first).await.expect("decrypts"), plain);
        assert!(
            plain.is_empty() || !first.windows(plain.len()).any(|each| each == plain) || plain.len() == 1
        );
    }
}

/// A ciphertext that lies in another place does not open.
pub async fn moved_is_refused(secrets: &dyn Secrets) {
    let sealed = secrets.encrypt("org|context|A", b"value").await.expect("encrypts");
    for elsewhere in ["org|context|B", "org|other|A", "org|context|A ", ""] {
        let moved = secrets.decrypt(elsewhere, &sealed).await;
        assert!(matches!(moved, Err(Error::Refused)), "opened under {elsewhere:?}");
    }
}

/// No flipped bit and no cut goes unnoticed.
pub async fn altered_is_refused(secrets: &dyn Secrets) {
    let sealed = secrets.encrypt("altered", b"value").await.expect("encrypts");
    for at in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert!(secrets.decrypt("altered", &altered).await.is_err(), "byte {at} is not guarded");
        assert!(secrets.decrypt("altered", &sealed[..at]).await.is_err(), "a cut at {at} goes unnoticed");
    }
}

/// Several open in their order, and none without all.
pub async fn together(secrets: &dyn Secrets) {
    assert!(secrets.decrypt_all(&[]).await.expect("nothing is to be opened").is_empty());
    let labels: Vec<String> = (0..300).map(|n| format!("together|{n}")).collect();
    let mut sealed = Vec::new();
    for label in &labels {
        sealed.push(secrets.encrypt(label, format!("value of {label}").as_bytes()).await.expect("encrypts"));
    }
    let mut all: Vec<(&str, &[u8])> =
        labels.iter().zip(&sealed).map(|(label, sealed)| (label.as_str(), sealed.as_slice())).collect();
    let opened = secrets.decrypt_all(&all).await.expect("opens");
    assert_eq!(opened.len(), all.len());
    for (label, value) in labels.iter().zip(&opened) {
        assert_eq!(&***value, format!("value of {label}").as_bytes());
    }
    // One of another place, in the middle.
    all.swap(100, 200);
    all[100].0 = &labels[100];
    assert!(matches!(secrets.decrypt_all(&all).await, Err(Error::Refused)), "a moved one opens among others");
}

/// Old ciphertexts open after a rotation, new ones use the new key, rewrapped ones survive the retiring.
pub async fn rotation(secrets: &dyn Secrets) {
    let before = secrets.newest().await.expect("has a key");
    let old = secrets.encrypt("rotation", b"value").await.expect("encrypts");
    let after = secrets.rotate().await.expect("rotates");
    assert!(after > before, "versions count up");
    assert_eq!(secrets.newest().await.expect("has a key"), after);
    assert_eq!(&**secrets.decrypt("rotation", &old).await.expect("the old key stays"), b"value");

    let new = secrets.rewrap("rotation", &old).await.expect("rewraps");
    assert_eq!(secrets.version_of(&old).expect("reads"), before);
    assert_eq!(secrets.version_of(&new).expect("reads"), after);
    assert!(matches!(secrets.rewrap("elsewhere", &old).await, Err(Error::Refused)), "rewrap keeps the label");

    secrets.retire_below(after).await.expect("retires");
    assert!(matches!(secrets.decrypt("rotation", &old).await, Err(Error::UnknownVersion(v)) if v == before));
    assert_eq!(&**secrets.decrypt("rotation", &new).await.expect("decrypts"), b"value");

    secrets.retire_below(u32::MAX).await.expect("retires");
    secrets.encrypt("rotation", b"value").await.expect("the newest key always stays");
}
