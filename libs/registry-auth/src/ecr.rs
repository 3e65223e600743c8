//! Amazon's Elastic Container Registry.

use crate::{
    Endpoints, Error, Login,
    http::{answer, away, client, is_temporary, tries},
};
use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use backon::Retryable;
use base64::{Engine, engine::general_purpose::STANDARD as B64};
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// What the role is asked for in seconds: the least that there is.
const SESSION: &str = "900";
/// Of its partitions. Others are not Amazon's: nobody's token goes there.
const DOMAINS: [&str; 3] = ["amazonaws.com", "amazonaws.com.cn", "amazonaws.eu"];
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";

/// Whom the registry is asked as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A key of the cloud's.
    Key {
        /// `aws_access_key_id`.
        id: String,
        /// `aws_secret_access_key`.
        secret: Zeroizing<String>,
    },
    /// A role that trusts the job's OIDC token.
    Role {
        /// `oidc_role_arn`.
        arn: String,
        /// The token (execution §21).
        token: Zeroizing<String>,
    },
}

/// A private registry, by the host of its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    region: String,
    /// `amazonaws.com`, or what stands for it in other partitions.
    domain: String,
}

impl Registry {
    /// `ACCOUNT.dkr.ecr.REGION.amazonaws.com/…`; `None`: another registry.
    pub fn of_image(image: &str) -> Option<Self> {
        let (host, _) = image.split_once('/')?;
        let mut parts = host.splitn(5, '.');
        let account = parts.next()?;
        let kind = (parts.next()?, parts.next()?);
        let (region, domain) = (parts.next()?, parts.next()?);
        let ours = !account.is_empty()
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(kind, ("dkr", "ecr" | "ecr-fips"))
            && DOMAINS.contains(&domain);
        ours.then(|| Self { region: region.to_owned(), domain: domain.to_owned() })
    }

    /// Asks for a password.
    ///
    /// # Errors
    /// The cloud refused, or does not answer.
    pub async fn login(&self, identity: &Identity, endpoints: &Endpoints) -> Result<Login, Error> {
        let client = client("ECR")?;
        let credentials = match identity {
            Identity::Key { id, secret } => Credentials::from_keys(id, secret.as_str(), None),
            Identity::Role { arn, token } => self.assume(&client, arn, token, endpoints).await?,
        };
        let url = self.url(endpoints.ecr.as_deref(), "api.ecr");
        let ask = || async {
            let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", TARGET)];
            let request = self.signed(&client, &url, &headers, &credentials)?;
            answer("ECR", request).await
        };
        let text = ask.retry(tries()).when(is_temporary).await?;
        let unreadable = |message: &str| Error::Away { service: "ECR", message: message.to_owned() };
        let found: Tokens = serde_json::from_str(&text).map_err(|e| unreadable(&e.to_string()))?;
        let token = found.tokens.into_iter().next().ok_or_else(|| unreadable("it gave no token"))?;
        let plain = B64.decode(token.token.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let plain = Zeroizing::new(plain.ok_or_else(|| unreadable("its token cannot be read"))?);
        let (username, password) =
            plain.split_once(':').ok_or_else(|| unreadable("its token has no password"))?;
        Ok(Login { username: username.to_owned(), password: Zeroizing::new(password.to_owned()) })
    }

    fn url(&self, given: Option<&str>, service: &str) -> String {
        let own = || format!("https://{service}.{}.{}", self.region, self.domain);
        format!("{}/", given.map_or_else(own, |url| url.trim_end_matches('/').to_owned()))
    }

    /// Trades the job's token for a key of the role. The token is the proof: nothing is signed.
    async fn assume(
        &self,
        client: &Client,
        arn: &str,
        token: &str,
        endpoints: &Endpoints,
    ) -> Result<Credentials, Error> {
        let url = self.url(endpoints.aws_sts.as_deref(), "sts");
        let form = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", arn),
            ("RoleSessionName", "gantry"),
            ("DurationSeconds", SESSION),
            ("WebIdentityToken", token),
        ];
        let ask = || answer("STS", client.post(&url).form(&form));
        let text = ask.retry(tries()).when(is_temporary).await?;
        let assumed: Assumed = quick_xml::de::from_str(&text)
            .map_err(|e| Error::Away { service: "STS", message: e.to_string() })?;
        let key = assumed.result.credentials;
        Ok(Credentials::from_keys(key.id, key.secret, Some(key.session)))
    }

    /// A call without a body to speak of, signed by the key.
    fn signed(
        &self,
        client: &Client,
        url: &str,
        headers: &[(&'static str, &'static str)],
        credentials: &Credentials,
    ) -> Result<RequestBuilder, Error> {
        const BODY: &str = "{}";
        let identity = credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("ecr")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(away("ECR"))?;
        let signable =
            SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(BODY.as_bytes()))
                .map_err(away("ECR"))?;
        let (instructions, _) = sign(signable, &params.into()).map_err(away("ECR"))?.into_parts();
        let mut request = http::Request::post(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(BODY).map_err(away("ECR"))?;
        instructions.apply_to_request_http1x(&mut request);
        let (parts, body) = request.into_parts();
        Ok(client.post(url).headers(parts.headers).body(body))
    }
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(rename = "authorizationData")]
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(rename = "authorizationToken")]
    token: String,
}

#[derive(Deserialize)]
struct Assumed {
    #[serde(rename = "AssumeRoleWithWebIdentityResult")]
    result: AssumedResult,
}

#[derive(Deserialize)]
struct AssumedResult {
    #[serde(rename = "Credentials")]
    credentials: Key,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "AccessKeyId")]
    id: String,
    #[serde(rename = "SecretAccessKey")]
    secret: String,
    #[serde(rename = "SessionToken")]
    session: String,
}
