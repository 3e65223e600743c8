//! How often one person may ask and change, and an organisation be asked about (security §5.2): token buckets that all processes of the edge share.

use crate::{auth::Caller, error::Fail, state::Config};
use axum::{extract::Request, http::HeaderValue, middleware::Next, response::Response};
use contracts::Refusal;
use ids::{OrgId, UserId};
use live::{Limiter, Live, Quota, Taken};
use std::sync::{Arc, OnceLock};

/// The buckets of everybody.
pub struct Rates {
    limiter: Limiter,
    requests: Option<Quota>,
    changes: Option<Quota>,
    organisations: Option<Quota>,
}

impl Rates {
    /// As configured; a rate of 0 is no limit.
    pub fn new(live: Arc<dyn Live>, config: &Config) -> Self {
        let quota = |(per_second, burst)| Quota::of(per_second, burst);
        let (requests, changes) = (quota(config.requests), quota(config.changes));
        let organisations = quota(config.org_requests);
        Self { limiter: Limiter::new(live), requests, changes, organisations }
    }

    /// Counts a request of a person, and notes for the answer how many are left.
    ///
    /// # Errors
    /// 429 `rate_limited`: there were too many.
    pub async fn request(&self, user: UserId, told: Option<&Told>) -> Result<(), Fail> {
        let Some(quota) = self.requests else { return Ok(()) };
        let taken = self.take("requests", user, quota).await;
        if let Some(Told(slot)) = told {
            // A request is counted once.
            let _ = slot.set((quota, taken));
        }
        if taken.allowed {
            return Ok(());
        }
        Err(Fail::rate_limited(too_many("requests", quota), quota.until(taken.left, 1.0)))
    }

    /// Counts a request about an organisation: the first that it is about, once.
    ///
    /// # Errors
    /// 429 `rate_limited`: there were too many.
    pub async fn organisation(&self, caller: &Caller, org: OrgId) -> Result<(), Fail> {
        let Some(quota) = self.organisations else { return Ok(()) };
        let take = async || self.limiter.take(&format!("api:org:{org}"), quota).await.allowed;
        if *caller.passed.get_or_init(take).await {
            return Ok(());
        }
        let message = too_many("org_requests", quota);
        Err(Fail::rate_limited(message, quota.until(0.0, 1.0)))
    }

    /// Counts a change that a person asks for.
    ///
    /// # Errors
    /// `rate_limited`: there were too many.
    pub async fn change(&self, user: UserId) -> Result<(), Refusal> {
        let Some(quota) = self.changes else { return Ok(()) };
        let taken = self.take("changes", user, quota).await;
        if taken.allowed { Ok(()) } else { Err(Refusal::new("rate_limited", too_many("changes", quota))) }
    }

    async fn take(&self, what: &str, user: UserId, quota: Quota) -> Taken {
        self.limiter.take(&format!("api:{what}:{user}"), quota).await
    }
}

fn too_many(what: &str, Quota { burst, per_second }: Quota) -> String {
    let said = what.replace("org_requests", "requests about this organisation");
    format!(
        "too many {said}: {per_second} per second and {burst} at once ([api] {what}_per_second, {what}_burst); try again later"
    )
}

/// Where a request's count is noted for the answer's headers.
#[derive(Clone, Default)]
pub struct Told(Arc<OnceLock<(Quota, Taken)>>);

/// Adds to an answer what its sender has left (api-v2 §0.3): `RateLimit-*`, and the same for the window of a second.
pub async fn told(mut request: Request, next: Next) -> Response {
    let told = Told::default();
    request.extensions_mut().insert(told.clone());
    let mut response = next.run(request).await;
    if let Some((quota, taken)) = told.0.get() {
        let reset = quota.until(taken.left, f64::from(quota.burst)).as_secs_f64().ceil();
        let headers = response.headers_mut();
        for (name, value) in [
            ("ratelimit-limit", f64::from(quota.burst)),
            ("ratelimit-remaining", taken.left.floor()),
            ("ratelimit-reset", reset),
            ("x-ratelimit-limit-second", quota.per_second),
            ("x-ratelimit-remaining-second", taken.left.floor().min(quota.per_second)),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
                headers.insert(name, value);
            }
        }
    }
    response
}
