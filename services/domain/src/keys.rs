//! SSH keys of people: public halves, with which they enter jobs that they rerun with SSH (execution §26).

use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    domain::{AddUserKey, ListUserKeys, RemoveUserKey, UserKey, UserKeyAdded, UserKeyRemoved, UserKeys},
};
use eventstore::Key;
use ids::{Timestamp, UserId};
use ssh_key::{Algorithm, HashAlg, PublicKey, public::KeyData};

/// Longest line of a key in bytes.
const MAX_KEY: usize = 16 * 1024;
/// Keys of one person.
const MAX_KEYS: i64 = 50;
/// Longest label in characters.
const MAX_LABEL: usize = 100;
/// Shortest modulus of an RSA key, in bytes: 2048 bits.
const MIN_RSA: usize = 256;

/// A public key that was read.
#[derive(Debug, PartialEq)]
struct Read {
    line: String,
    sha256: String,
    comment: String,
}

/// Reads a public key as people paste it.
fn read(text: &str) -> Result<Read, Refusal> {
    let invalid = |message: &str| Refusal::new("invalid", message);
    if text.len() > MAX_KEY {
        return Err(invalid("a public key has at most 16384 bytes"));
    }
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        return Err(invalid(
            "this is a private key, which nobody may have but you; send the public one, from the file whose name ends in \
             .pub. It was not kept",
        ));
    }
    if text.lines().count() != 1 {
        return Err(invalid("a public key is one line, such as `ssh-ed25519 AAAA… you@example.com`"));
    }
    let key = PublicKey::from_openssh(text).map_err(|e| {
        invalid(&format!(
            "the public key cannot be read: {e}. It is a line such as `ssh-ed25519 AAAA… you@example.com`"
        ))
    })?;
    match (key.algorithm(), key.key_data()) {
        (Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::SkEd25519, _) => {}
        (_, KeyData::Rsa(rsa)) => {
            let modulus = rsa.n.as_positive_bytes().map_or(0, <[u8]>::len);
            if modulus < MIN_RSA {
                return Err(invalid(
                    "the RSA key has less than 2048 bits; `ssh-keygen -t ed25519` makes a better one",
                ));
            }
        }
        (other, _) => {
            return Err(invalid(&format!(
                "keys of the kind {other} are not taken; `ssh-keygen -t ed25519` makes one that is"
            )));
        }
    }
    let line = key.to_openssh().map_err(|e| invalid(&format!("the public key cannot be read: {e}")))?;
    let sha256 = key.fingerprint(HashAlg::Sha256).to_string();
    Ok(Read { line, sha256, comment: key.comment().to_owned() })
}

/// Registers a key of the actor.
pub(crate) async fn add(state: &State, request: &Request, ask: AddUserKey) -> Result<UserKey, Failure> {
    let user_id = person(request)?;
    let Read { line, sha256, comment } = read(&ask.public_key)?;
    let label: String = ask.label.unwrap_or(comment).trim().chars().take(MAX_LABEL).collect();
    let mut once = match Once::begin(&state.store, request, &[Key::new("user", user_id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let (count, known): (i64, bool) = sqlx::query_as(
        "SELECT count(*), coalesce(bool_or(sha256 = $2), false) FROM domain.user_keys WHERE user_id = $1",
    )
    .bind(user_id.uuid())
    .bind(&sha256)
    .fetch_one(once.tx.conn())
    .await?;
    if known {
        return Err(Refusal::new("exists", format!("the key {sha256} is registered already")).into());
    }
    if count >= MAX_KEYS {
        let message = format!("you have {MAX_KEYS} keys, which is the limit: remove one first");
        return Err(Refusal::new("too_many_keys", message).into());
    }
    let created_at: Timestamp = sqlx::query_scalar(
        "INSERT INTO domain.user_keys (user_id, sha256, public_key, label) VALUES ($1, $2, $3, $4) RETURNING created_at",
    )
    .bind(user_id.uuid())
    .bind(&sha256)
    .bind(&line)
    .bind(&label)
    .fetch_one(once.tx.conn())
    .await?;
    let event = UserKeyAdded { user_id, sha256: sha256.clone() };
    once.tx.append(&[NewEvent::new("user", user_id.uuid(), request.actor.clone(), &event)]).await?;
    once.commit(UserKey { public_key: line, sha256, label, created_at }).await
}

/// Keys of the actor.
pub(crate) async fn list(state: &State, request: &Request, _: ListUserKeys) -> Result<UserKeys, Failure> {
    let user_id = person(request)?;
    let login: Option<String> = sqlx::query_scalar("SELECT login FROM domain.users WHERE id = $1")
        .bind(user_id.uuid())
        .fetch_optional(state.store.pool())
        .await?;
    let login = login.ok_or_else(|| Refusal::not_found("User"))?;
    let rows: Vec<(String, String, String, Timestamp)> = sqlx::query_as(
        "SELECT public_key, sha256, label, created_at FROM domain.user_keys WHERE user_id = $1
         ORDER BY created_at, sha256",
    )
    .bind(user_id.uuid())
    .fetch_all(state.store.pool())
    .await?;
    let keys = rows.into_iter().map(|(public_key, sha256, label, created_at)| UserKey {
        public_key,
        sha256,
        label,
        created_at,
    });
    Ok(UserKeys { login, keys: keys.collect() })
}

/// Removes a key of the actor.
pub(crate) async fn remove(state: &State, request: &Request, ask: RemoveUserKey) -> Result<(), Failure> {
    let user_id = person(request)?;
    let mut once = match Once::begin(&state.store, request, &[Key::new("user", user_id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let gone = sqlx::query("DELETE FROM domain.user_keys WHERE user_id = $1 AND sha256 = $2")
        .bind(user_id.uuid())
        .bind(&ask.sha256)
        .execute(once.tx.conn())
        .await?;
    if gone.rows_affected() == 0 {
        // Another's key is told from none in no way.
        return Err(Refusal::not_found("SSH key").into());
    }
    let event = UserKeyRemoved { user_id, sha256: ask.sha256 };
    once.tx.append(&[NewEvent::new("user", user_id.uuid(), request.actor.clone(), &event)]).await?;
    once.commit(()).await
}

fn person(request: &Request) -> Result<UserId, Refusal> {
    request.actor.user().ok_or_else(|| Refusal::new("forbidden", "only a person has SSH keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUDVpLFlN0OoYlKvSXMCcLZIoWqkVgKwyTOmdWvgpB/ ada@example.com";

    #[test]
    fn public_keys_are_read_as_they_are_pasted() {
        let key = read(&format!("  {ED25519}\r\n")).unwrap();
        assert_eq!((key.line.as_str(), key.comment.as_str()), (ED25519, "ada@example.com"));
        assert!(key.sha256.starts_with("SHA256:"));
    }

    #[test]
    fn what_is_no_key_to_enter_with_is_refused() {
        let said = |text: &str| read(text).unwrap_err().message;
        assert!(said("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n").contains("private key"));
        assert!(said(&format!("{ED25519}\n{ED25519}")).contains("one line"));
        assert!(said("ssh-ed25519 AAAA").contains("cannot be read"));
        assert!(said("").contains("one line"));
        assert!(said(&"x".repeat(MAX_KEY + 1)).contains("16384"));
        // 1024 bits.
        let short = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDFGWDQiVlWlBWdIAwy0BLODICYvFqkI3kAZpyJBbLKfqN0GjEXsaZEMOQTd/sEFjLyLJsCNI1oaZkyGGrlHuvwJ1K4bnGmUKpGRBjmFYvSAmKkXcVQA9xCO9Sg8DGCr2YeFr8lmoZNtKzi+FDsVVyyJVPAJZh7MOsiVXNhVJH0cw== x";
        assert!(said(short).contains("2048 bits"), "{}", said(short));
    }
}
