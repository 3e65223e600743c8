//! What steps find in their environment (execution §11).

use agent_api::{Secrets, TaskSpec};
use executors::Identity;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

/// Variables of the agent's own environment that steps see too; everything else is the server's business. By
/// the mark of its placement a sweep finds what a dead agent left.
const INHERITED: [&str; 14] = [
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GANTRY_PLACEMENT",
];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The folders of a task, below the folder that is its own.
pub(crate) struct Places {
    outside: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) bash_env: PathBuf,
    /// The job's working directory.
    pub(crate) work: PathBuf,
}

impl Places {
    /// Makes the folders and puts the agent among the programs.
    pub(crate) fn make(
        outside: &Path,
        inside: &Path,
        program: &Path,
        owner: Option<Identity>,
        own_copy: bool,
        spec: &TaskSpec,
    ) -> io::Result<Self> {
        fs::set_permissions(outside, fs::Permissions::from_mode(0o755))?;
        let own = |path: &Path, mode: u32| -> io::Result<()> {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            match owner {
                Some(id) => chown(path, Some(id.uid), Some(id.gid)),
                None => Ok(()),
            }
        };
        for (name, mode) in [("home", 0o700), ("data", 0o700)] {
            let path = outside.join(name);
            fs::create_dir_all(&path)?;
            own(&path, mode)?;
        }
        let bin = outside.join("bin");
        fs::create_dir_all(&bin)?;
        let agent = bin.join("gantry-runner");
        if !agent.exists() {
            // A link costs nothing. It is not for a task that has the owner's rights over the file and none
            // over the original, and across file systems it cannot be.
            if own_copy || fs::hard_link(program, &agent).is_err() {
                fs::copy(program, &agent)?;
            }
            fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
            for name in ["circleci", "circleci-agent", "gantry-agent"] {
                symlink("gantry-runner", bin.join(name))?;
            }
        }
        let job = spec.job_id.to_string();
        let name = format!(".bash_env-{job}-{}-build", spec.index);
        let file = outside.join("data").join(&name);
        fs::write(&file, "")?;
        own(&file, 0o600)?;
        let home = inside.join("home");
        let work = expand(&spec.definition.working_directory, &home, &home);
        Ok(Self {
            outside: outside.to_owned(),
            bin: inside.join("bin"),
            data: inside.join("data"),
            bash_env: inside.join("data").join(name),
            home,
            work,
        })
    }

    /// Whether a step asked that no further one runs.
    pub(crate) fn is_halted(&self) -> bool {
        self.outside.join("data/halt").exists()
    }

    /// Writes a script that the steps may read; answers where they find it.
    pub(crate) fn script(&self, number: u32, text: &str) -> io::Result<PathBuf> {
        let folder = self.outside.join("scripts");
        fs::create_dir_all(&folder)?;
        let name = format!("step-{number}");
        let path = folder.join(&name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let inside = self.bin.parent().unwrap_or(Path::new("/"));
        Ok(inside.join("scripts").join(name))
    }
}

/// A path of the configuration: absolute, below the home folder, or below `base`.
pub(crate) fn expand(path: &str, home: &Path, base: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ if path.is_empty() || path == "." => base.to_owned(),
        _ => base.join(path),
    }
}

/// The variables of a job, and what the step that shows them prints.
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) shown: String,
}

impl Environment {
    pub(crate) fn build(
        spec: &TaskSpec,
        secrets: &Secrets,
        places: &Places,
        owner: Option<Identity>,
    ) -> Result<Self, String> {
        let definition = &spec.definition;
        let all = definition.environment.iter().chain(definition.steps.iter().flat_map(|step| match step {
            model::plan::Step::Run(run) => run.environment.as_slice(),
            _ => &[],
        }));
        for (name, value) in all {
            if !is_name(name) {
                return Err(format!("{name:?} is not a name that an environment variable can have"));
            }
            if value.contains('\0') {
                return Err(format!("the value of {name} contains a NUL byte"));
            }
        }
        let mut variables = BTreeMap::new();
        for name in INHERITED {
            if let Ok(value) = std::env::var(name) {
                variables.insert(name.to_owned(), value);
            }
        }
        let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        let uid = owner.map_or_else(|| nix::unistd::getuid().as_raw(), |id| id.uid);
        let user = user_name(uid);
        let mut set = |name: &str, value: String| drop(variables.insert(name.to_owned(), value));
        set("PATH", format!("{}:{path}", places.bin.display()));
        set("HOME", places.home.display().to_string());
        set("USER", user.clone());
        set("LOGNAME", user);
        set("TERM", "xterm".into());
        for (name, value) in &secrets.variables {
            set(name, value.clone());
        }
        let built_in = built_in(spec, places);
        for (name, value) in &built_in {
            set(name, value.clone());
        }
        for (name, value) in &definition.environment {
            set(name, value.clone());
        }
        let shown = show(&built_in, &definition.environment, secrets);
        Ok(Self { variables, shown })
    }

    pub(crate) fn with(&self, more: &[(String, String)]) -> Vec<(String, String)> {
        let mut all = self.variables.clone();
        all.extend(more.iter().cloned());
        all.into_iter().collect()
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn built_in(spec: &TaskSpec, places: &Places) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    set("CI", "true".into());
    set("CIRCLECI", "true".into());
    set("CIRCLE_BUILD_NUM", spec.job_number.to_string());
    set("CIRCLE_BUILD_URL", spec.job_url.clone());
    set("CIRCLE_JOB", spec.job_name.clone());
    set("CIRCLE_STAGE", spec.job_name.clone());
    set("CIRCLE_NODE_INDEX", spec.index.to_string());
    set("CIRCLE_NODE_TOTAL", spec.total.to_string());
    set("CIRCLE_ORGANIZATION_ID", spec.org_id.to_string());
    set("CIRCLE_PROJECT_ID", spec.project_id.to_string());
    set("CIRCLE_PIPELINE_ID", spec.pipeline_id.to_string());
    set("CIRCLE_PROJECT_REPONAME", spec.repo.clone());
    set("CIRCLE_PROJECT_USERNAME", spec.org.clone());
    set("CIRCLE_REPOSITORY_URL", spec.repository_url.clone());
    set("CIRCLE_SHA1", spec.revision.clone());
    set("CIRCLE_WORKFLOW_ID", spec.workflow_id.to_string());
    set("CIRCLE_WORKFLOW_JOB_ID", spec.job_id.to_string());
    set("CIRCLE_WORKFLOW_WORKSPACE_ID", spec.workspace_id.to_string());
    set("CIRCLE_WORKING_DIRECTORY", spec.definition.working_directory.clone());
    set("CIRCLE_INTERNAL_TASK_DATA", places.data.display().to_string());
    set("BASH_ENV", places.bash_env.display().to_string());
    set("CIRCLE_SHELL_ENV", places.bash_env.display().to_string());
    set("GANTRY_PIPELINE_NUMBER", spec.pipeline_number.to_string());
    if !spec.upstream.is_empty() {
        let ids: Vec<String> = spec.upstream.iter().map(ToString::to_string).collect();
        set("CIRCLE_WORKFLOW_UPSTREAM_JOB_IDS", ids.join(","));
    }
    // Scripts ask whether these are set at all.
    for (name, value) in
        [("CIRCLE_BRANCH", &spec.branch), ("CIRCLE_TAG", &spec.tag), ("CIRCLE_USERNAME", &spec.username)]
    {
        if let Some(value) = value {
            set(name, value.clone());
        }
    }
    all
}

fn show(built_in: &BTreeMap<String, String>, job: &[(String, String)], secrets: &Secrets) -> String {
    let mut text = String::from("Using build environment variables:\n");
    for (name, value) in built_in {
        text.push_str(&format!("  {name}={value}\n"));
    }
    if !job.is_empty() {
        text.push_str("\nUsing environment variables from the configuration of the job:\n");
        for (name, value) in job {
            text.push_str(&format!("  {name}={value}\n"));
        }
    }
    if !secrets.variables.is_empty() {
        text.push_str("\nUsing environment variables from project settings and/or contexts:\n");
        let names: std::collections::BTreeSet<&String> =
            secrets.variables.iter().map(|(name, _)| name).collect();
        for name in names {
            text.push_str(&format!("  {name}=**REDACTED**\n"));
        }
        text.push_str("\nThe redacted variables listed above will be masked in run step output.\n");
    }
    text
}

/// Read from the file itself: a static program cannot ask a directory service.
fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| uid.to_string())
}
