//! Checks the identities that Nomad signs for allocations.

use crate::{
    api::{Api, Place},
    job::AUDIENCE,
};
use compute::Error;
use futures::future::join_all;
use ids::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde::Deserialize;
use std::{collections::HashMap, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// Unknown keys are asked for no faster than this: whoever reaches us could name any.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Seconds by which Nomad's clock and ours may differ (reliability §14).
const LEEWAY: i64 = 30;

/// What an identity says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Claims {
    #[serde(rename = "nomad_job_id")]
    pub(crate) job: String,
    #[serde(rename = "nomad_allocation_id")]
    pub(crate) allocation: String,
    #[serde(rename = "nomad_namespace")]
    namespace: String,
    /// Until when it holds, in seconds of the epoch.
    exp: i64,
    /// From when.
    nbf: Option<i64>,
}

/// The public keys that are known. Kept, so that identities can be checked while Nomad's servers are away.
#[derive(Default)]
pub(crate) struct Signers(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The last that each place said.
    sets: HashMap<Place, JwkSet>,
    asked: Option<Instant>,
}

impl Signers {
    /// The claims of an identity that one of the places' regions has signed.
    pub(crate) async fn check(
        &self,
        api: &Api,
        places: &[Place],
        proof: &str,
        now: Timestamp,
    ) -> Result<Claims, Error> {
        let refused = |error: jsonwebtoken::errors::Error| Error::Identity(error.to_string());
        let header = decode_header(proof).map_err(refused)?;
        let kid = header.kid.ok_or_else(|| Error::Identity("it names no key".to_owned()))?;
        let key = self.key(api, places, &kid).await?;
        let mut validation = Validation::new(header.alg);
        validation.algorithms = vec![Algorithm::RS256, Algorithm::EdDSA];
        validation.algorithms.retain(|known| *known == header.alg);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        // By the time that we are given, below.
        validation.validate_exp = false;
        let claims = decode::<Claims>(proof, &key, &validation).map_err(refused)?.claims;
        let now = now.timestamp();
        if claims.exp < now - LEEWAY || claims.nbf.is_some_and(|from| from > now + LEEWAY) {
            return Err(Error::Identity("it holds no more, or not yet".to_owned()));
        }
        if !places.iter().any(|place| place.namespace == claims.namespace) {
            return Err(Error::Identity(format!("its namespace {} is not ours", claims.namespace)));
        }
        Ok(claims)
    }

    async fn key(&self, api: &Api, places: &[Place], kid: &str) -> Result<DecodingKey, Error> {
        let mut known = self.0.lock().await;
        let mut away = None;
        if find(&known.sets, kid).is_none() {
            if known.asked.is_some_and(|at| at.elapsed() < ASK_AT_MOST_EVERY) {
                return Err(Error::Scheduler("Nomad was asked for its keys a moment ago".to_owned()));
            }
            known.asked = Some(Instant::now());
            let answers = join_all(places.iter().map(|place| api.keys(place))).await;
            for (place, answer) in places.iter().zip(answers) {
                match answer {
                    Ok(set) => drop(known.sets.insert(place.clone(), set)),
                    Err(failure) => away = Some(failure),
                }
            }
        }
        let key = match (find(&known.sets, kid), away) {
            (Some(key), _) => key,
            // Whoever did not answer may know it.
            (None, Some(failure)) => return Err(failure.into()),
            (None, None) => {
                return Err(Error::Identity("it is signed with a key that Nomad does not know".to_owned()));
            }
        };
        DecodingKey::from_jwk(key).map_err(|error| Error::Identity(error.to_string()))
    }
}

fn find<'s>(sets: &'s HashMap<Place, JwkSet>, kid: &str) -> Option<&'s jsonwebtoken::jwk::Jwk> {
    sets.values().find_map(|set| set.find(kid))
}
