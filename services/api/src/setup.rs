//! The one-time sign-in code that `gantry up` prints (security §6.3): a browser trades it for a token of the
//! first administrator. It takes the place of a default password.

use crate::{
    error::{Fail, Problem},
    state::App,
};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use contracts::{Actor, domain::CreateToken};
use ids::UserId;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a code may be used.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Wrong codes after which the right one is void too.
const ATTEMPTS: u32 = 10;
/// Letters and digits that nobody confuses.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// The code that may be used now, if any.
#[derive(Default)]
pub struct SignIn(Mutex<Option<Offer>>);

struct Offer {
    sha256: [u8; 32],
    user: UserId,
    until: Instant,
    wrong: u32,
}

impl SignIn {
    /// A new code for this person, such as `7Q4M-2KXD`; one that was given out before is void.
    pub fn issue(&self, user: UserId) -> String {
        let mut random = [0u8; 8];
        // Without randomness there is no code, and nothing is offered.
        if aws_lc_rs::rand::fill(&mut random).is_err() {
            return String::new();
        }
        let mut code: String =
            random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        code.insert(4, '-');
        *self.offer() =
            Some(Offer { sha256: digest(&code), user, until: Instant::now() + LIFETIME, wrong: 0 });
        code
    }

    /// Whose code it is; it is used up.
    fn redeem(&self, code: &str) -> Option<UserId> {
        let mut offer = self.offer();
        let known = offer.as_mut().filter(|known| Instant::now() < known.until && known.wrong < ATTEMPTS)?;
        // Digests are compared, so that time tells nothing of the code.
        if known.sha256 != digest(code) {
            known.wrong += 1;
            return None;
        }
        offer.take().map(|known| known.user)
    }

    fn offer(&self) -> std::sync::MutexGuard<'_, Option<Offer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(code: &str) -> [u8; 32] {
    let plain: String =
        code.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
    Sha256::digest(plain).into()
}

/// `POST /setup`.
pub fn routes() -> Router<App> {
    Router::new().route("/setup", post(redeem))
}

#[derive(Deserialize)]
struct Redeem {
    code: String,
}

async fn redeem(State(app): State<App>, Json(body): Json<Redeem>) -> Result<Json<Value>, Problem> {
    let user = app.sign_in.redeem(&body.code).ok_or_else(|| {
        Fail::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "this code was used, is too old or is wrong; start Gantry again for a new one, or sign in with a token",
        )
    })?;
    let token = crate::graphql::new_token()?;
    let ask = CreateToken { label: "browser".to_owned(), sha256: hex::encode(Sha256::digest(&token)) };
    app.bus.ask(&Actor::User { id: user }, &ask).await.map_err(Fail::from)?;
    Ok(Json(json!({ "token": token })))
}
