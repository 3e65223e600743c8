//! AppRole logins: a token is taken when it is needed, renewed while it is used, and taken anew when it is gone.

use crate::http::{Failure, Http};
use reqwest::{Method, StatusCode};
use secrets::Zeroizing;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fmt,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// What an AppRole login is made with.
#[derive(Clone, Default)]
pub struct AppRole {
    /// Which role.
    pub role_id: String,
    /// Its secret.
    pub secret_id: Zeroizing<String>,
}

impl fmt::Debug for AppRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppRole").field("role_id", &self.role_id).finish_non_exhaustive()
    }
}

/// `auth` of an answer.
#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u64,
    renewable: bool,
}

struct Held {
    token: Zeroizing<String>,
    renewable: bool,
    /// How long it was good when it was taken.
    whole: Duration,
    renew: Instant,
    end: Instant,
}

impl Held {
    fn new(auth: Auth, whole: Option<Duration>) -> Self {
        let (now, lease) = (Instant::now(), Duration::from_secs(auth.lease_duration));
        let token = Zeroizing::new(auth.client_token);
        let whole = whole.unwrap_or(lease);
        Self { token, renewable: auth.renewable, whole, renew: now + lease * 2 / 3, end: now + lease }
    }

    /// Whether a renewal gave it most of its life again; near its longest life it does not.
    fn is_young(&self) -> bool {
        self.end.saturating_duration_since(Instant::now()) * 3 >= self.whole
    }
}

/// A token that is good still is not renewed again for so long after Vault did not answer: nobody waits for that.
const AWAY: Duration = Duration::from_secs(2);

/// What a login has now.
#[derive(Default)]
struct Now {
    held: Option<Held>,
    /// Why there was no token, and when that was known.
    failed: Option<(Instant, Failure)>,
}

/// A login and the token that it has now.
pub(crate) struct Login {
    role: AppRole,
    now: Mutex<Now>,
}

impl Login {
    pub(crate) fn new(role: AppRole) -> Self {
        Self { role, now: Mutex::default() }
    }

    /// A token that is good now. Callers wait for the one that fetches it.
    async fn token(&self, http: &Http) -> Result<Zeroizing<String>, Failure> {
        let came = Instant::now();
        let mut now = self.now.lock().await;
        let old = match now.held.take() {
            Some(held) if Instant::now() < held.renew => {
                let token = held.token.clone();
                now.held = Some(held);
                return Ok(token);
            }
            old => old,
        };
        // Those who waited learn it with the one that asked: else each would wait out the time of an answer, one after
        // the other.
        if let Some((at, failure)) = &now.failed
            && *at >= came
        {
            return Err(failure.clone());
        }
        let taken = match old {
            Some(old) if old.renewable && Instant::now() < old.end => match renew(http, &old).await {
                Ok(renewed) if renewed.is_young() => Ok(renewed),
                // Denied, or near the longest life of a token.
                Ok(_) | Err(Failure::Refused { .. }) => self.take(http).await,
                // Good still: what it is for fails by itself if Vault is away.
                Err(Failure::Away(..) | Failure::Sealed(_)) => {
                    Ok(Held { renew: (Instant::now() + AWAY).min(old.end), ..old })
                }
            },
            _ => self.take(http).await,
        };
        match taken {
            Ok(held) => {
                let token = held.token.clone();
                *now = Now { held: Some(held), failed: None };
                Ok(token)
            }
            Err(failure) => {
                now.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn take(&self, http: &Http) -> Result<Held, Failure> {
        let body = json!({ "role_id": self.role.role_id, "secret_id": *self.role.secret_id });
        let answer = http.call(Method::POST, "auth/approle/login", None, &body).await?;
        Ok(Held::new(auth(answer)?, None))
    }

    /// A call with this login's token; once more with a new one if Vault does not know the old one any more.
    pub(crate) async fn call(
        &self,
        http: &Http,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let token = self.token(http).await?;
        match http.call(method.clone(), path, Some(token.as_str()), body).await {
            Err(Failure::Refused { status: StatusCode::FORBIDDEN, .. }) => {
                self.forget(&token).await;
                let token = self.token(http).await?;
                http.call(method, path, Some(token.as_str()), body).await
            }
            other => other,
        }
    }

    async fn forget(&self, token: &str) {
        let mut now = self.now.lock().await;
        if now.held.as_ref().is_some_and(|held| *held.token == token) {
            now.held = None;
        }
    }
}

async fn renew(http: &Http, old: &Held) -> Result<Held, Failure> {
    let path = "auth/token/renew-self";
    let answer = http.call(Method::POST, path, Some(old.token.as_str()), &json!({})).await?;
    Ok(Held::new(auth(answer)?, Some(old.whole)))
}

fn auth(mut answer: Value) -> Result<Auth, Failure> {
    serde_json::from_value(answer["auth"].take()).map_err(|_| Failure::Refused {
        at: "login".to_owned(),
        status: StatusCode::OK,
        why: "the answer to a login has no token".to_owned(),
    })
}
