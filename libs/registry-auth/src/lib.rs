//! Credentials for the image registries of clouds (config-language §11.2): what a job may say of itself to get a short-lived
//! password. Amazon's ECR takes a key of its owner's, or the job's own OIDC token for a role; Google's registries take the
//! token for a service account.

pub mod ecr;
pub mod google;
mod http;

use zeroize::Zeroizing;

/// What a registry is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password, for some hours at most.
    pub password: Zeroizing<String>,
}

/// Where the clouds answer; `None`: at their own addresses.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Of ECR.
    pub ecr: Option<String>,
    /// Of Amazon's STS.
    pub aws_sts: Option<String>,
    /// Of Google's STS.
    pub google_sts: Option<String>,
    /// Of Google's service account credentials.
    pub google_iam: Option<String>,
}

impl Endpoints {
    /// As the clouds' own programs find them: `AWS_ENDPOINT_URL_ECR`, `AWS_ENDPOINT_URL_STS`,
    /// `CLOUDSDK_API_ENDPOINT_OVERRIDES_STS`, `CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS`.
    pub fn from_environment() -> Self {
        let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            ecr: of("AWS_ENDPOINT_URL_ECR"),
            aws_sts: of("AWS_ENDPOINT_URL_STS"),
            google_sts: of("CLOUDSDK_API_ENDPOINT_OVERRIDES_STS"),
            google_iam: of("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS"),
        }
    }
}

/// Why there is no password. The texts are for the author of the job, and hold nothing of its secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cloud refused.
    #[error("{service} refused ({status}): {message}")]
    Refused {
        /// `ECR`, `STS`, `Google STS` or `Google IAM`.
        service: &'static str,
        /// Status of the answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It could not be asked, or not be understood.
    #[error("{service} does not answer: {message}")]
    Away {
        /// As above.
        service: &'static str,
        /// Why.
        message: String,
    },
}
