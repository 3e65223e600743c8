//! Finds the server, the token and the project from flags, environment, this folder's git remote, and an
//! instance that runs on this machine (outside §4).

use crate::{Exit, Failure, Global};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where to send requests.
pub struct Place {
    /// Base address without a trailing slash.
    pub server: String,
    /// API token.
    pub token: String,
    /// Certificate to trust besides the usual authorities, PEM.
    pub certificate: Option<PathBuf>,
}

impl Place {
    /// Flags and environment first, then the instance in the data folder.
    pub fn find(global: &Global) -> Result<Self, Failure> {
        let data = global.data.clone().unwrap_or_else(|| PathBuf::from("gantry-data"));
        let server = match &global.server {
            Some(server) if server.starts_with("http://") || server.starts_with("https://") => {
                server.trim_end_matches('/').to_owned()
            }
            Some(server) => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("{server} is no address of a server; write it as http://host:port or https://host"),
                ));
            }
            None => from_instance(&data, "url").ok_or_else(|| {
                Failure::new(
                    Exit::Connection,
                    format!(
                        "no server given and none runs from {}; start one with `gantry up`, or name one with --server or GANTRY_SERVER",
                        data.display()
                    ),
                )
            })?,
        };
        let token = match &global.token {
            Some(token) => token.clone(),
            None => fs::read_to_string(data.join("admin-token")).map(|text| text.trim().to_owned()).map_err(
                |_| Failure::new(Exit::NotSignedIn, "no token given; set GANTRY_TOKEN or use --token"),
            )?,
        };
        let certificate = global.ca_file.clone().or_else(|| match &global.server {
            None => from_instance(&data, "certificate").map(PathBuf::from),
            Some(_) => None,
        });
        Ok(Self { server, token, certificate })
    }
}

fn from_instance(data: &Path, key: &str) -> Option<String> {
    let text = fs::read(data.join("instance.json")).ok()?;
    let json: Value = serde_json::from_slice(&text).ok()?;
    Some(json.get(key)?.as_str()?.to_owned())
}

/// The project slug: `--project`, else the first git remote of this folder that looks like one of ours.
pub async fn project(global: &Global) -> Result<String, Failure> {
    if let Some(project) = &global.project {
        return Ok(project.clone());
    }
    let output = tokio::process::Command::new("git").args(["remote", "-v"]).output().await;
    let remotes = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    remotes.lines().find_map(slug_of_remote).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            "no project given and no git remote of this folder is one; use --project git/<org>/<repo>",
        )
    })
}

fn slug_of_remote(line: &str) -> Option<String> {
    let url = line.split_whitespace().nth(1)?;
    let (_, path) = url.split_once("/git/")?;
    let path = path.trim_end_matches('/').trim_end_matches(".git");
    (path.split('/').count() == 2).then(|| format!("git/{path}"))
}

#[cfg(test)]
mod tests {
    use super::slug_of_remote;

    #[test]
    fn a_remote_of_the_embedded_git_server_names_its_project() {
        let line = "origin\thttp://x:token@127.0.0.1:8080/git/local/app.git (fetch)";
        assert_eq!(slug_of_remote(line).as_deref(), Some("git/local/app"));
        assert_eq!(slug_of_remote("origin git@example.com:a/b.git (fetch)"), None);
    }
}
