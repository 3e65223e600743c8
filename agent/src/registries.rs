//! Credentials with which the images of a task are pulled (config-language §11.2).

use crate::{environment::TOKENS, own_step::OwnStep};
use model::plan::{Container, RegistryAuth};
use registry_auth::{Endpoints, Error, Login, ecr, google};

/// What stands for `aws_auth` where a job has none.
const AWS_KEY: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
/// Keys of `gcp_auth`, and what stands for each where a job does not give it.
const GCP: [(&str, &str); 3] = [
    ("oidc_service_account", "GCP_OIDC_SERVICE_ACCOUNT"),
    ("workload_identity_pool", "GCP_WORKLOAD_IDENTITY_POOL"),
    ("workload_identity_provider", "GCP_WORKLOAD_IDENTITY_PROVIDER"),
];

/// Whether an image is pulled with what is secret: then secrets come before the containers.
pub(crate) fn want_secrets(containers: &[Container]) -> bool {
    containers.iter().any(|container| {
        let image = &container.image;
        container.auth.is_some() || ecr::Registry::of_image(image).is_some() || google::holds(image)
    })
}

/// Fills in what the credentials of the containers name, and has the registries of clouds give passwords for them.
///
/// # Errors
/// What is missing, or why there is no password, in words for the author of the job.
pub(crate) async fn log_in(
    containers: &mut [Container],
    variables: &[(String, String)],
    spin_up: &mut OwnStep,
) -> Result<(), String> {
    let endpoints = Endpoints::from_environment();
    let mut known: Vec<(Cloud, Login)> = Vec::new();
    for container in containers {
        executors_docker::fill_auth(container, variables).map_err(|error| error.to_string())?;
        let image = &container.image;
        let Some(cloud) = asked(container, variables).map_err(|e| format!("the image {image}: {e}"))? else {
            continue;
        };
        let login = match known.iter().find(|(other, _)| *other == cloud) {
            Some((_, login)) => login.clone(),
            None => {
                let login = cloud.login(&endpoints).await;
                let login = login.map_err(|e| format!("the image {image} cannot be pulled: {e}"))?;
                let _ = spin_up.write(format!("{} gave a password for {image}\n", cloud.name()).as_bytes());
                known.push((cloud, login.clone()));
                login
            }
        };
        container.auth =
            Some(RegistryAuth::Basic { username: login.username, password: login.password.to_string() });
    }
    Ok(())
}

/// A cloud that gives a password, and as whom it is asked.
#[derive(PartialEq)]
enum Cloud {
    Amazon(ecr::Registry, ecr::Identity),
    Google(google::Identity),
}

impl Cloud {
    async fn login(&self, endpoints: &Endpoints) -> Result<Login, Error> {
        match self {
            Self::Amazon(registry, identity) => registry.login(identity, endpoints).await,
            Self::Google(identity) => google::login(identity, endpoints).await,
        }
    }

    /// As the spin-up step calls it.
    fn name(&self) -> &'static str {
        match self {
            Self::Amazon(..) => "ECR",
            Self::Google(_) => "Google",
        }
    }
}

/// Which cloud is asked for a container's image; `None`: none, or there is nobody to ask as.
fn asked(container: &Container, variables: &[(String, String)]) -> Result<Option<Cloud>, String> {
    // A later one overrides an earlier one.
    let variable =
        |name: &str| variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let token = |key: &str| {
        let token = variable(TOKENS[1]);
        token.ok_or_else(|| format!("`{key}` needs the job's OIDC token, and it has none"))
    };
    let image = &container.image;
    match &container.auth {
        Some(RegistryAuth::Basic { .. }) => Ok(None),
        Some(RegistryAuth::Aws { values }) => {
            let registry = ecr::Registry::of_image(image)
                .ok_or("`aws_auth` is for ACCOUNT.dkr.ecr.REGION.amazonaws.com; others take `auth`")?;
            let [role, id, secret] = ["oidc_role_arn", "aws_access_key_id", "aws_secret_access_key"]
                .map(|name| value(values, name));
            let identity = match (role, id, secret) {
                (Some(arn), ..) => ecr::Identity::Role { arn, token: token("oidc_role_arn")?.into() },
                (None, Some(id), Some(secret)) => ecr::Identity::Key { id, secret: secret.into() },
                _ => {
                    let message =
                        "`aws_auth` has `aws_access_key_id` and `aws_secret_access_key`, or `oidc_role_arn`";
                    return Err(message.into());
                }
            };
            Ok(Some(Cloud::Amazon(registry, identity)))
        }
        Some(RegistryAuth::Gcp { values }) => {
            if !google::holds(image) {
                return Err("`gcp_auth` is for LOCATION-docker.pkg.dev and gcr.io; others take `auth`".into());
            }
            let [account, pool, provider] = GCP.map(|(key, name)| {
                let found = value(values, key).or_else(|| variable(name));
                found.ok_or_else(|| format!("`gcp_auth` has no `{key}`, and there is no variable {name}"))
            });
            let token = token("gcp_auth")?.into();
            Ok(Some(Cloud::Google(google::Identity::new(&account?, &pool?, &provider?, token)?)))
        }
        None => {
            if let Some(registry) = ecr::Registry::of_image(image)
                && let [Some(id), Some(secret)] = AWS_KEY.map(variable)
            {
                let secret = secret.into();
                return Ok(Some(Cloud::Amazon(registry, ecr::Identity::Key { id, secret })));
            }
            if google::holds(image)
                && let [Some(account), Some(pool), Some(provider)] = GCP.map(|(_, name)| variable(name))
            {
                let token = token("GCP_OIDC_SERVICE_ACCOUNT")?.into();
                return Ok(Some(Cloud::Google(google::Identity::new(&account, &pool, &provider, token)?)));
            }
            Ok(None)
        }
    }
}

fn value(values: &[(String, String)], name: &str) -> Option<String> {
    values.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/tool:1";

    fn container(image: &str, auth: &[(&str, &str)]) -> Container {
        let values = auth.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let auth = (!auth.is_empty()).then_some(RegistryAuth::Aws { values });
        Container { image: image.to_owned(), auth, ..Container::default() }
    }

    fn whom(container: &Container, variables: &[(&str, &str)]) -> String {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match asked(container, &variables) {
            Ok(None) => "nobody".to_owned(),
            Ok(Some(Cloud::Amazon(_, ecr::Identity::Key { id, secret }))) => {
                format!("{id} {}", secret.as_str())
            }
            Ok(Some(Cloud::Amazon(_, ecr::Identity::Role { arn, token }))) => {
                format!("{arn} {}", token.as_str())
            }
            Ok(Some(Cloud::Google(_))) => "google".to_owned(),
            Err(e) => e,
        }
    }

    #[test]
    fn a_registry_is_asked_as_whom_the_job_says() {
        let key = [("aws_access_key_id", "a"), ("aws_secret_access_key", "b")];
        assert_eq!(whom(&container(IMAGE, &key), &[]), "a b");
        let role = container(IMAGE, &[("oidc_role_arn", "r")]);
        assert_eq!(whom(&role, &[("CIRCLE_OIDC_TOKEN_V2", "t")]), "r t");
        assert!(whom(&role, &[]).contains("it has none"));
        let variables =
            [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_ACCESS_KEY_ID", "z")];
        assert_eq!(whom(&container(IMAGE, &[]), &variables), "z y");
        assert_eq!(whom(&container(IMAGE, &[]), &[]), "nobody");
        assert_eq!(whom(&container("cimg/base:1", &[]), &variables), "nobody");
        assert!(whom(&container("cimg/base:1", &key), &[]).contains("`aws_auth` is for"));
        assert!(whom(&container(IMAGE, &key[..1]), &[]).contains("`aws_secret_access_key`, or"));
        assert!(want_secrets(&[container(IMAGE, &[])]) && !want_secrets(&[container("cimg/base:1", &[])]));
    }

    #[test]
    fn google_is_asked_with_what_the_job_or_its_variables_say() {
        const IMAGE: &str = "europe-west1-docker.pkg.dev/team/tools/tool:1";
        const POOL: &str = "projects/12/locations/global/workloadIdentityPools/ci";
        let gcp = |image: &str, values: &[(&str, &str)]| {
            let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Container { auth: Some(RegistryAuth::Gcp { values }), ..container(image, &[]) }
        };
        let said = [
            ("oidc_service_account", "ci@team.iam.gserviceaccount.com"),
            ("workload_identity_pool", POOL),
            ("workload_identity_provider", "gantry"),
        ];
        let token = ("CIRCLE_OIDC_TOKEN_V2", "t");
        assert_eq!(whom(&gcp(IMAGE, &said), &[token]), "google");
        assert!(whom(&gcp(IMAGE, &said), &[]).contains("it has none"));
        assert!(whom(&gcp("cimg/base:1", &said), &[token]).contains("`gcp_auth` is for"));
        assert!(
            whom(&gcp(IMAGE, &said[..2]), &[token]).contains("no variable GCP_WORKLOAD_IDENTITY_PROVIDER")
        );
        let short = [said[0], ("workload_identity_pool", "ci"), said[2]];
        assert!(whom(&gcp(IMAGE, &short), &[token]).contains("number of its project"));
        let variables = [
            token,
            ("GCP_OIDC_SERVICE_ACCOUNT", said[0].1),
            ("GCP_WORKLOAD_IDENTITY_POOL", POOL),
            ("GCP_WORKLOAD_IDENTITY_PROVIDER", "gantry"),
        ];
        assert_eq!(whom(&container(IMAGE, &[]), &variables), "google");
        assert_eq!(whom(&gcp(IMAGE, &said[2..]), &variables), "google");
        assert_eq!(whom(&container(IMAGE, &[]), &variables[..3]), "nobody");
        assert!(want_secrets(&[container("eu.gcr.io/team/tool", &[])]));
    }
}
