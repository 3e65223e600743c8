//! Private keys under the newest key of the key ring, as [`crate::variables::rewrap`] does it for values.

use crate::{State, oidc, ssh_keys};
use uuid::Uuid;

/// Rows of one kind that hold a private key.
struct Kind {
    select: &'static str,
    update: &'static str,
    label: fn(Uuid) -> String,
}

const KINDS: [Kind; 2] = [
    Kind {
        select: "SELECT id, sealed FROM contexts.ssh_keys WHERE key_version < $1",
        update: "UPDATE contexts.ssh_keys SET sealed = $2, key_version = $3 WHERE id = $1 AND key_version < $3",
        label: ssh_keys::label,
    },
    Kind {
        select: "SELECT id, sealed FROM contexts.oidc_keys WHERE key_version < $1",
        update: "UPDATE contexts.oidc_keys SET sealed = $2, key_version = $3 WHERE id = $1 AND key_version < $3",
        label: oidc::label,
    },
];

/// Seals them anew; they are few and never change, so each is a transaction of its own. Answer: how many.
pub(crate) async fn keys(state: &State) -> anyhow::Result<u64> {
    let newest = i64::from(state.secrets.newest().await?);
    let mut done = 0;
    for kind in &KINDS {
        let rows: Vec<(Uuid, Vec<u8>)> =
            sqlx::query_as(kind.select).bind(newest).fetch_all(state.store.pool()).await?;
        for (id, sealed) in rows {
            let renewed = state.secrets.rewrap(&(kind.label)(id), &sealed).await?;
            let one = sqlx::query(kind.update)
                .bind(id)
                .bind(renewed)
                .bind(newest)
                .execute(state.store.pool())
                .await?;
            done += one.rows_affected();
        }
    }
    Ok(done)
}
