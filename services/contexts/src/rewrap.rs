//! Everything under the newest key of the key ring, whoever rotated it: values as [`crate::variables::rewrap`] does it, and
//! private keys.

use crate::{State, oidc, ssh_keys, variables};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Between two looks for what lies under an older key: it has to be gone within a day of a rotation (security §4.1).
const EVERY: Duration = Duration::from_secs(3600);

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

/// Looks now and every hour, until `stop`. Several processes may do it: each row is written once.
pub(crate) async fn regularly(state: State, stop: CancellationToken) {
    let looks = async {
        loop {
            match everything(&state).await {
                Ok(0) => {}
                Ok(rewrapped) => tracing::info!(rewrapped, "secrets were sealed under the newest key"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "secrets stay under older keys until the next look");
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(looks).await;
}

/// Seals all of it anew. Answer: how many.
pub(crate) async fn everything(state: &State) -> anyhow::Result<u64> {
    Ok(variables::rewrap(state).await? + keys(state).await?)
}

/// The same under the newest key. `None`: it cannot be opened, and stays as it is; that is said, and others go on.
pub(crate) async fn renewed(state: &State, label: &str, sealed: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    match state.secrets.rewrap(label, sealed).await {
        Ok(renewed) => Ok(Some(renewed)),
        Err(error @ (secrets::Error::Refused | secrets::Error::UnknownVersion(_))) => {
            tracing::error!(label, %error, "a secret stays under an older key: set it anew");
            Ok(None)
        }
        Err(away @ secrets::Error::Store(_)) => Err(away.into()),
    }
}

/// Seals them anew; they are few and never change, so each is a transaction of its own. Answer: how many.
async fn keys(state: &State) -> anyhow::Result<u64> {
    let newest = i64::from(state.secrets.newest().await?);
    let mut done = 0;
    for kind in &KINDS {
        let rows: Vec<(Uuid, Vec<u8>)> =
            sqlx::query_as(kind.select).bind(newest).fetch_all(state.store.pool()).await?;
        for (id, sealed) in rows {
            let Some(renewed) = renewed(state, &(kind.label)(id), &sealed).await? else { continue };
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
