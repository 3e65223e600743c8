//! Credentials for the image registries of clouds (config-language §11.2): what a job may say of itself to get a short-lived
//! password. Amazon's ECR takes a key of its owner's, or the job's own OIDC token for a role.

mod ecr;

use zeroize::Zeroizing;

pub use ecr::Registry;

/// Whom an image is asked for as.
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

/// What a registry is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password, for some hours.
    pub password: Zeroizing<String>,
}

/// Where the cloud answers; `None`: at its own addresses.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Of ECR.
    pub ecr: Option<String>,
    /// Of STS.
    pub sts: Option<String>,
}

impl Endpoints {
    /// As the cloud's own programs find them: `AWS_ENDPOINT_URL_ECR`, `AWS_ENDPOINT_URL_STS`.
    pub fn from_environment() -> Self {
        let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self { ecr: of("AWS_ENDPOINT_URL_ECR"), sts: of("AWS_ENDPOINT_URL_STS") }
    }
}

/// Why there is no password. The texts are for the author of the job, and hold nothing of its secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cloud refused.
    #[error("{service} refused ({status}): {message}")]
    Refused {
        /// `ECR` or `STS`.
        service: &'static str,
        /// Status of the answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It could not be asked, or not be understood.
    #[error("{service} does not answer: {message}")]
    Away {
        /// `ECR` or `STS`.
        service: &'static str,
        /// Why.
        message: String,
    },
}
