//! Google's Artifact Registry, and the Container Registry whose names it has taken over.

use crate::{
    Endpoints, Error, Login,
    http::{answer, client, is_temporary, tries},
};
use backon::Retryable;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

/// Reading is enough.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform.read-only";
/// With which an access token goes to a registry.
const USER: &str = "oauth2accesstoken";
/// Seconds for which the service account is asked.
const LIFETIME: &str = "900s";

/// A service account that trusts the job's OIDC token by a pool of workload identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    account: String,
    /// Who checks the token, by its whole name: `projects/…/providers/…`.
    provider: String,
    token: Zeroizing<String>,
}

impl Identity {
    /// Of `oidc_service_account`, `workload_identity_pool`, `workload_identity_provider` and the job's OIDC token
    /// (execution §21). Google knows a provider by the number of its project, so one of the two has to be the whole name
    /// that it shows, `projects/NUMBER/locations/global/workloadIdentityPools/POOL` or that with `/providers/PROVIDER`
    /// behind it.
    ///
    /// # Errors
    /// Neither is, or the account is no address; in words for the author of the job.
    pub fn new(account: &str, pool: &str, provider: &str, token: Zeroizing<String>) -> Result<Self, String> {
        let part = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !account.split_once('@').is_some_and(|(name, host)| !name.is_empty() && part(name) && part(host)) {
            return Err(format!(
                "`oidc_service_account` is `{account}`, which is not the address of a service account"
            ));
        }
        let provider = whole(pool, provider)?;
        Ok(Self { account: account.to_owned(), provider, token })
    }
}

/// The whole name of a provider.
fn whole(pool: &str, provider: &str) -> Result<String, String> {
    let bare = |text: &str| {
        let text = text.trim().trim_start_matches("https:").trim_start_matches("//iam.googleapis.com/");
        text.trim_matches('/').to_owned()
    };
    let (pool, provider) = (bare(pool), bare(provider));
    let whole = match (pool.starts_with("projects/"), provider.starts_with("projects/")) {
        (_, true) => provider,
        (true, false) => format!("{pool}/providers/{provider}"),
        (false, false) => {
            return Err(format!(
                "`workload_identity_pool` is `{pool}`, and Google needs the number of its project too: write its whole \
                     name, projects/NUMBER/locations/global/workloadIdentityPools/{pool}"
            ));
        }
    };
    let parts: Vec<&str> = whole.split('/').collect();
    match parts[..] {
        ["projects", project, "locations", location, "workloadIdentityPools", pool, "providers", name]
            if [project, location, pool, name].iter().all(|part| !part.is_empty()) =>
        {
            Ok(whole)
        }
        _ => Err(format!(
            "`{whole}` names no provider: projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER"
        )),
    }
}

/// Whether an image is in one of Google's registries. Nobody's token goes to others.
pub fn holds(image: &str) -> bool {
    let Some((host, _)) = image.split_once('/') else { return false };
    host == "gcr.io" || host.ends_with(".gcr.io") || host.ends_with("-docker.pkg.dev")
}

/// Trades the job's token for one of the service account.
///
/// # Errors
/// The cloud refused, or does not answer.
pub async fn login(identity: &Identity, endpoints: &Endpoints) -> Result<Login, Error> {
    let client = client("Google STS")?;
    let at = |given: &Option<String>, own: &str, path: &str| {
        format!("{}/{path}", given.as_deref().unwrap_or(own).trim_end_matches('/'))
    };
    let url = at(&endpoints.google_sts, "https://sts.googleapis.com", "v1/token");
    let body = json!({
        "audience": format!("//iam.googleapis.com/{}", identity.provider),
        "grantType": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requestedTokenType": "urn:ietf:params:oauth:token-type:access_token",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "subjectTokenType": "urn:ietf:params:oauth:token-type:jwt",
        "subjectToken": identity.token.as_str(),
    });
    let ask = || answer("Google STS", client.post(&url).json(&body));
    let text = Zeroizing::new(ask.retry(tries()).when(is_temporary).await?);
    let federated: Federated = serde_json::from_str(&text).map_err(|_| unreadable("Google STS"))?;

    let path = format!("v1/projects/-/serviceAccounts/{}:generateAccessToken", identity.account);
    let url = at(&endpoints.google_iam, "https://iamcredentials.googleapis.com", &path);
    let body = json!({ "scope": [SCOPE], "lifetime": LIFETIME });
    let ask = || answer("Google IAM", client.post(&url).bearer_auth(&federated.access_token).json(&body));
    let text = Zeroizing::new(ask.retry(tries()).when(is_temporary).await?);
    let of_account: OfAccount = serde_json::from_str(&text).map_err(|_| unreadable("Google IAM"))?;
    Ok(Login { username: USER.to_owned(), password: Zeroizing::new(of_account.access_token) })
}

/// What it says may hold the token.
fn unreadable(service: &'static str) -> Error {
    Error::Away { service, message: "its answer holds no token".to_owned() }
}

#[derive(Deserialize)]
struct Federated {
    access_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfAccount {
    access_token: String,
}
