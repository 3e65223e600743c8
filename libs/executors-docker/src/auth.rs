//! Registry credentials of a container's entry (config-language §11.2).

use crate::Error;
use bollard::auth::DockerCredentials;
use model::plan::{Container, RegistryAuth};

/// Fills `$NAME` and `${NAME}` in the credentials of a container from the variables that were delivered to the job;
/// variables of the configuration do not count.
///
/// # Errors
/// A name that was not delivered.
pub fn fill(container: &mut Container, variables: &[(String, String)]) -> Result<(), Error> {
    let image = container.image.clone();
    let find = |name: &str| {
        // A later one overrides an earlier one.
        let found = variables.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            Error::Job(format!(
                "the credentials for {image} name ${name}, and neither a context of the job nor its project has that variable"
            ))
        })
    };
    match &mut container.auth {
        None => {}
        Some(RegistryAuth::Basic { username, password }) => {
            *username = substitute(username, find)?;
            *password = substitute(password, find)?;
        }
        Some(RegistryAuth::Aws { values } | RegistryAuth::Gcp { values }) => {
            for (_, value) in values {
                *value = substitute(value, find)?;
            }
        }
    }
    Ok(())
}

fn substitute(text: &str, find: impl Fn(&str) -> Result<String, Error>) -> Result<String, Error> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts_name = |c: char| c.is_ascii_alphabetic() || c == '_';
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some((name, tail)) = after.strip_prefix('{').and_then(|braced| braced.split_once('}'))
            && name.starts_with(starts_name)
            && name.chars().all(is_name)
        {
            filled.push_str(&find(name)?);
            rest = tail;
        } else if after.starts_with(starts_name) {
            let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
            filled.push_str(&find(&after[..end])?);
            rest = &after[end..];
        } else {
            filled.push('$');
            rest = after;
        }
    }
    Ok(filled + rest)
}

/// What the engine is told.
pub(crate) fn credentials(container: &Container) -> Result<Option<DockerCredentials>, Error> {
    match &container.auth {
        None => Ok(None),
        Some(RegistryAuth::Basic { username, password }) => Ok(Some(DockerCredentials {
            username: Some(username.clone()),
            password: Some(password.clone()),
            serveraddress: Some(registry(&container.image)),
            ..DockerCredentials::default()
        })),
        Some(RegistryAuth::Aws { .. } | RegistryAuth::Gcp { .. }) => {
            Err(Error::Job(format!("no cloud was asked for a password for the image {}", container.image)))
        }
    }
}

/// The registry of a reference: its first part, if that looks like a host.
fn registry(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "https://index.docker.io/v1/".to_owned(),
    }
}
