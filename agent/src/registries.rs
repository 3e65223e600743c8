//! Credentials with which the images of a task are pulled (config-language §11.2).

use crate::{environment::TOKENS, own_step::OwnStep};
use model::plan::{Container, RegistryAuth};
use registry_auth::{Endpoints, Identity, Login, Registry};

/// What stands for `aws_auth` where a job has none.
const AWS_KEY: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// Whether an image is pulled with what is secret: then secrets come before the containers.
pub(crate) fn want_secrets(containers: &[Container]) -> bool {
    containers
        .iter()
        .any(|container| container.auth.is_some() || Registry::of_image(&container.image).is_some())
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
    let mut known: Vec<(Registry, Identity, Login)> = Vec::new();
    for container in containers {
        executors_docker::fill_auth(container, variables).map_err(|error| error.to_string())?;
        let image = &container.image;
        let Some((registry, identity)) =
            asked(container, variables).map_err(|e| format!("the image {image}: {e}"))?
        else {
            continue;
        };
        let found = known.iter().find(|(other, as_whom, _)| (other, as_whom) == (&registry, &identity));
        let login = match found {
            Some((.., login)) => login.clone(),
            None => {
                let login = registry.login(&identity, &endpoints).await;
                let login = login.map_err(|e| format!("the image {image} cannot be pulled: {e}"))?;
                let _ = spin_up.write(format!("ECR gave a password for {image}\n").as_bytes());
                known.push((registry, identity, login.clone()));
                login
            }
        };
        container.auth =
            Some(RegistryAuth::Basic { username: login.username, password: login.password.to_string() });
    }
    Ok(())
}

/// The cloud's registry of a container's image, and as whom it is asked; `None`: there is none, or nobody to ask as.
fn asked(
    container: &Container,
    variables: &[(String, String)],
) -> Result<Option<(Registry, Identity)>, String> {
    // A later one overrides an earlier one.
    let variable =
        |name: &str| variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let registry = Registry::of_image(&container.image);
    let values = match (&container.auth, &registry) {
        (None, Some(_)) => {
            let [Some(id), Some(secret)] = AWS_KEY.map(variable) else { return Ok(None) };
            return Ok(registry.map(|registry| (registry, Identity::Key { id, secret: secret.into() })));
        }
        (Some(RegistryAuth::Aws { values }), _) => values,
        _ => return Ok(None),
    };
    let registry =
        registry.ok_or("`aws_auth` is for ACCOUNT.dkr.ecr.REGION.amazonaws.com; others take `auth`")?;
    let value = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let identity = match (value("oidc_role_arn"), value("aws_access_key_id"), value("aws_secret_access_key"))
    {
        (Some(arn), ..) => {
            let token =
                variable(TOKENS[1]).ok_or("`oidc_role_arn` needs the job's OIDC token, and it has none")?;
            Identity::Role { arn, token: token.into() }
        }
        (None, Some(id), Some(secret)) => Identity::Key { id, secret: secret.into() },
        _ => {
            return Err(
                "`aws_auth` has `aws_access_key_id` and `aws_secret_access_key`, or `oidc_role_arn`".into()
            );
        }
    };
    Ok(Some((registry, identity)))
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
            Ok(Some((_, Identity::Key { id, secret }))) => format!("{id} {}", secret.as_str()),
            Ok(Some((_, Identity::Role { arn, token }))) => format!("{arn} {}", token.as_str()),
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
}
