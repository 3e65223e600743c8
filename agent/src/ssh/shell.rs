//! The shell of sessions, and what it finds in its environment: the job's, as steps have it.

use crate::steps::Runner;
use anyhow::Context;
use std::path::PathBuf;

const BASH: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];
/// Read by an interactive bash once, before its first prompt. A login shell reads profiles, which set `PATH` anew in most
/// images and know nothing of what steps have left in `BASH_ENV`.
const FOR_BASH: &str = r#"PROMPT_COMMAND=${PROMPT_COMMAND/'. "$GANTRY_SSH_RC"'/:}
[ "$PROMPT_COMMAND" != : ] || unset PROMPT_COMMAND
[ "$PATH" = "$GANTRY_SSH_PATH" ] || PATH="$GANTRY_SSH_PATH:$PATH"
unset GANTRY_SSH_PATH GANTRY_SSH_RC
[ ! -r "$BASH_ENV" ] || . "$BASH_ENV"
"#;
/// The same for shells that read `ENV`.
const FOR_SH: &str = r#"[ "$PATH" = "$GANTRY_SSH_PATH" ] || PATH="$GANTRY_SSH_PATH:$PATH"
unset GANTRY_SSH_PATH ENV
[ ! -r "$BASH_ENV" ] || . "$BASH_ENV"
"#;

/// What sessions run.
pub(super) struct Shell {
    program: &'static str,
    bash: bool,
    rc: PathBuf,
}

/// What a session asks for.
pub(super) enum Wanted {
    /// A login shell at a terminal of this kind.
    Login {
        /// `TERM`.
        term: String,
    },
    /// A shell that reads commands.
    Plain,
    /// One command.
    Command(String),
}

impl Shell {
    pub(super) async fn find(runner: &Runner) -> anyhow::Result<Self> {
        let mut found = None;
        for program in BASH {
            if runner.sandbox.exists(program.as_ref()).await? {
                found = Some(program);
                break;
            }
        }
        let rc = runner.places.data.join("ssh-session.sh");
        let text = if found.is_some() { FOR_BASH } else { FOR_SH };
        runner.sandbox.write(&rc, text, 0o644).await.context("a file of sessions cannot be written")?;
        Ok(Self { program: found.unwrap_or("/bin/sh"), bash: found.is_some(), rc })
    }

    /// Program with arguments, and the environment beside the job's. What is not interactive is as steps are: bash reads
    /// `BASH_ENV` by itself.
    pub(super) fn command(
        &self,
        wanted: &Wanted,
        job: &[(String, String)],
    ) -> (Vec<String>, Vec<(String, String)>) {
        let program = self.program.to_owned();
        match wanted {
            Wanted::Plain => (vec![program], Vec::new()),
            Wanted::Command(command) => (vec![program, "-c".into(), command.clone()], Vec::new()),
            Wanted::Login { term } => {
                let path = job.iter().rev().find(|(name, _)| name == "PATH");
                let path = path.map(|(_, path)| path.clone()).unwrap_or_default();
                let rc = self.rc.display().to_string();
                let mut env = vec![("TERM".to_owned(), term.clone()), ("GANTRY_SSH_PATH".to_owned(), path)];
                if self.bash {
                    env.push(("GANTRY_SSH_RC".into(), rc));
                    env.push(("PROMPT_COMMAND".into(), r#". "$GANTRY_SSH_RC""#.into()));
                    return (vec![program, "--login".into()], env);
                }
                env.push(("ENV".into(), rc));
                (vec![program, "-l".into()], env)
            }
        }
    }
}
