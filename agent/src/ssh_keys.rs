//! The step `add_ssh_keys` (execution §14.2): keys of the project as files, as entries of OpenSSH's configuration and
//! in an `ssh-agent`, where the environment has one. All of it lies in the task's own home folder and goes with it.

use crate::{
    output::Stream,
    steps::{Ended, Runner},
};
use agent_api::SshKey;
use executors::{Command, Io};
use std::{io, path::PathBuf, time::Duration};

/// Longest time that adding takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Keys have their places already. `ssh` finds its configuration by the user's entry in the password database and not
/// by `HOME`, so that where these differ the agent is what serves the keys.
const SCRIPT: &str = r#"set -e
chmod 700 "$HOME/.ssh"
touch "$HOME/.ssh/config"
chmod 600 "$HOME/.ssh/config"
printf '%s' "$GANTRY_SSH_STANZAS" >> "$HOME/.ssh/config"
if command -v ssh-agent >/dev/null 2>&1 && command -v ssh-add >/dev/null 2>&1; then
  [ -S "$SSH_AUTH_SOCK" ] || ssh-agent -a "$SSH_AUTH_SOCK" >/dev/null
  for key in $GANTRY_SSH_FILES; do ssh-add -q "$HOME/.ssh/$key"; done
fi
"#;

/// Those lines of a private key that are secret: its first and last line are the same for all keys.
pub(crate) fn secret_lines(key: &SshKey) -> impl Iterator<Item = &str> {
    key.private_key.lines().filter(|line| !line.starts_with("-----"))
}

/// The keys of which a step asks for these fingerprints; the error names one that the project does not have.
fn choose<'k>(keys: &'k [SshKey], fingerprints: &[String]) -> Result<Vec<&'k SshKey>, String> {
    if fingerprints.is_empty() {
        return Ok(keys.iter().collect());
    }
    let mut chosen: Vec<&SshKey> = Vec::new();
    for wanted in fingerprints {
        let wanted = wanted.trim();
        let found: Vec<&SshKey> =
            keys.iter().filter(|key| key.md5.eq_ignore_ascii_case(wanted) || key.sha256 == wanted).collect();
        if found.is_empty() {
            return Err(format!(
                "The project has no SSH key with the fingerprint {wanted}. `gantry ssh-key list` shows those that it has."
            ));
        }
        for key in found {
            if !chosen.iter().any(|other| std::ptr::eq(*other, key)) {
                chosen.push(key);
            }
        }
    }
    Ok(chosen)
}

/// Name of a key's file.
fn file_name(key: &SshKey) -> String {
    format!("id_rsa_{}", key.md5.replace(':', ""))
}

impl Runner {
    /// Adds the keys; how its program ended, or `None` for a step that failed and has said why.
    pub(crate) async fn add_ssh_keys(
        &self,
        fingerprints: &[String],
        stream: &mut Stream,
    ) -> io::Result<Option<Ended>> {
        let keys = match choose(&self.ssh_keys, fingerprints) {
            Ok(keys) => keys,
            Err(message) => {
                stream.note(&message)?;
                return Ok(None);
            }
        };
        if keys.is_empty() {
            stream.note("The project has no additional SSH keys.")?;
            return Ok(Some(Ended::Exit(0)));
        }
        let folder = self.places.home.join(".ssh");
        let mut stanzas = String::new();
        let mut files: Vec<String> = Vec::new();
        for key in keys {
            let name = file_name(key);
            let path = folder.join(&name);
            self.sandbox.write(&path, &key.private_key, 0o600).await.map_err(io::Error::other)?;
            // A key for no host in particular is for all but those that have one of their own.
            let host = key.hostname.as_deref().unwrap_or("!github.com *");
            stanzas.push_str(&format!(
                "\nHost {host}\n  IdentitiesOnly no\n  IdentityFile {}\n",
                path.display()
            ));
            let place = key.hostname.as_deref().unwrap_or("any host");
            stream.note(&format!("Installing key {} ({}) for {place}", key.md5, key.sha256))?;
            if !files.contains(&name) {
                files.push(name);
            }
        }
        let env = self.variables(&[
            ("GANTRY_SSH_STANZAS".into(), stanzas),
            ("GANTRY_SSH_FILES".into(), files.join(" ")),
            ("SSH_AUTH_SOCK".into(), self.ssh_socket().display().to_string()),
        ]);
        let argv = ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec();
        let dir = self.places.home.clone();
        let command = Command { argv, env, dir, make_dir: false, io: Io::Terminal };
        let ended = self.process(command, Some(LIMIT), stream).await?;
        if self.sandbox.exists(&self.ssh_socket()).await.unwrap_or(false) {
            self.set_variable("SSH_AUTH_SOCK", self.ssh_socket().display().to_string());
        }
        Ok(Some(ended))
    }

    /// Where the task's `ssh-agent` listens.
    fn ssh_socket(&self) -> PathBuf {
        self.places.data.join("ssh-agent.sock")
    }

    /// Puts the key that fetches the repository where `ssh` looks first (execution §14.1). Answer: the folder.
    pub(crate) async fn install_checkout_key(&self) -> io::Result<Option<PathBuf>> {
        let Some(key) = &self.checkout_key else { return Ok(None) };
        let folder = self.places.home.join(".ssh");
        let write = async |name: &str, text: &str, mode| {
            self.sandbox.write(&folder.join(name), text, mode).await.map_err(io::Error::other)
        };
        write("id_rsa", &key.private_key, 0o600).await?;
        write("id_rsa.pub", &format!("{}\n", key.public_key.trim_end()), 0o644).await?;
        Ok(Some(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(md5: &str, sha256: &str) -> SshKey {
        let text = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n";
        SshKey {
            hostname: None,
            md5: md5.into(),
            sha256: sha256.into(),
            public_key: "ssh-ed25519 AAAA".into(),
            private_key: text.into(),
        }
    }

    #[test]
    fn keys_are_chosen_by_either_fingerprint_and_once() {
        let keys = [key("aa:bb", "SHA256:x"), key("cc:dd", "SHA256:y")];
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&w| w.to_owned()).collect();
            choose(&keys, &wanted).map(|found| found.iter().map(|key| key.md5.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["aa:bb", "cc:dd"]);
        assert_eq!(names(&["SHA256:y", "AA:BB", "cc:dd"]).unwrap(), ["cc:dd", "aa:bb"]);
        assert!(names(&["ee:ff"]).unwrap_err().contains("ee:ff"));
    }

    #[test]
    fn the_lines_that_all_keys_have_are_no_secret() {
        assert_eq!(secret_lines(&key("", "")).collect::<Vec<_>>(), ["c2VjcmV0"]);
    }
}
