//! The `checkout` step (execution §14.1).

use agent_api::{Source, TaskSpec};
use base64::{Engine, engine::general_purpose::STANDARD};
use model::plan::CheckoutMethod;
use reqwest::Url;
use std::path::Path;

/// What the script ends with when the repository could not be reached: it is run again.
pub(crate) const UNREACHABLE: i32 = 75;
/// How often it is run in all.
pub(crate) const TRIES: u32 = 5;

/// Runs in the folder to check out to. The result is a local branch named like the built one, at exactly the
/// revision.
pub(crate) const SCRIPT: &str = r#"set -e
if [ -n "$GANTRY_SSH_DIR" ]; then
  chmod 700 "$GANTRY_SSH_DIR"
  echo "Using SSH Config Dir '$GANTRY_SSH_DIR'"
fi
git --version
if [ -e .git ]; then
  echo 'Fetching into existing repository'
  git remote set-url origin "$GANTRY_SOURCE_URL"
  existed=1
else
  if [ -n "$(ls -A)" ]; then
    echo "Directory ($PWD) you are trying to checkout to is not empty and not a git repository" >&2
    exit 1
  fi
  echo 'Cloning git repository'
  case $GANTRY_CHECKOUT_METHOD in
    blobless)
      # This version of git loses objects when it clones so.
      if [ "$(git --version)" = 'git version 2.41.0' ]; then
        echo 'Blobless checkout is not possible with git 2.41.0, making a full one'
        git clone --no-progress --no-checkout "$GANTRY_SOURCE_URL" . || exit 75
      else
        git clone --no-progress --no-checkout --filter=blob:none "$GANTRY_SOURCE_URL" . || exit 75
      fi ;;
    shallow)
      git init --quiet .
      git remote add origin "$GANTRY_SOURCE_URL"
      git fetch --no-progress --depth "$GANTRY_CHECKOUT_DEPTH" origin "$GANTRY_SOURCE_REVISION" || exit 75
      if [ -n "$GANTRY_SOURCE_TAG" ]; then
        git update-ref "refs/tags/$GANTRY_SOURCE_TAG" FETCH_HEAD
      elif [ -n "$GANTRY_SOURCE_BRANCH" ]; then
        git update-ref "refs/remotes/origin/$GANTRY_SOURCE_BRANCH" FETCH_HEAD
      fi ;;
    *) git clone --no-progress --no-checkout "$GANTRY_SOURCE_URL" . || exit 75 ;;
  esac
  existed=
fi
if [ -n "$existed" ]; then
  echo 'Fetching from remote repository'
  if [ -n "$GANTRY_SOURCE_TAG" ]; then
    git fetch --no-progress --force --tags origin || exit 75
  elif [ -n "$GANTRY_SOURCE_BRANCH" ]; then
    git fetch --no-progress --force origin "+refs/heads/$GANTRY_SOURCE_BRANCH:refs/remotes/origin/$GANTRY_SOURCE_BRANCH" || exit 75
  else
    git fetch --no-progress --force origin || exit 75
  fi
fi
if ! git cat-file -e "$GANTRY_SOURCE_REVISION^{commit}" 2>/dev/null; then
  git fetch --no-progress --force origin "$GANTRY_SOURCE_REVISION"
fi
if [ -n "$GANTRY_SOURCE_TAG" ]; then
  echo 'Checking out tag'
  git -c advice.detachedHead=false checkout --force "refs/tags/$GANTRY_SOURCE_TAG"
  git reset --hard "$GANTRY_SOURCE_REVISION"
else
  if [ -n "$GANTRY_SOURCE_BRANCH" ]; then
    echo 'Checking out branch'
    git checkout --force -B "$GANTRY_SOURCE_BRANCH" "$GANTRY_SOURCE_REVISION"
  else
    git -c advice.detachedHead=false checkout --force "$GANTRY_SOURCE_REVISION"
  fi
  git --no-pager log -1 --format='HEAD is now at %h %s'
fi
"#;

/// The variables of the script. `inside` is the repository's URL where that of the source cannot be reached: git uses it,
/// and the repository keeps the other. The credential is configuration in the environment of this step alone: not an
/// argument that others can read, not a file that stays, and nothing that git prints.
pub(crate) fn variables(
    spec: &TaskSpec,
    source: &Source,
    method: CheckoutMethod,
    (inside, ssh): (Option<&Url>, Option<&Path>),
) -> Vec<(String, String)> {
    let (method, depth) = match method {
        CheckoutMethod::Full => ("full", String::new()),
        CheckoutMethod::Blobless => ("blobless", String::new()),
        CheckoutMethod::Shallow { depth } => ("shallow", depth.to_string()),
    };
    let credential = STANDARD.encode(format!("{}:{}", source.username, source.password));
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let used = inside.map_or(source.url.as_str(), Url::as_str);
    let mut configuration =
        vec![(format!("http.{used}.extraHeader"), format!("Authorization: Basic {credential}"))];
    configuration.extend(inside.map(|inside| (format!("url.{inside}.insteadOf"), source.url.clone())));
    let count = set("GIT_CONFIG_COUNT", &configuration.len().to_string());
    let configuration = configuration.into_iter().enumerate().flat_map(|(i, (key, value))| {
        [(format!("GIT_CONFIG_KEY_{i}"), key), (format!("GIT_CONFIG_VALUE_{i}"), value)]
    });
    let variables = [
        set("GANTRY_SOURCE_URL", &source.url),
        set("GANTRY_SOURCE_REVISION", &spec.revision),
        set("GANTRY_SOURCE_BRANCH", spec.branch.as_deref().unwrap_or_default()),
        set("GANTRY_SOURCE_TAG", spec.tag.as_deref().unwrap_or_default()),
        set("GANTRY_CHECKOUT_METHOD", method),
        set("GANTRY_CHECKOUT_DEPTH", &depth),
        set("GANTRY_SSH_DIR", &ssh.map(|folder| folder.display().to_string()).unwrap_or_default()),
        set("GIT_TERMINAL_PROMPT", "0"),
        count,
    ];
    variables.into_iter().chain(configuration).collect()
}

/// What must not be seen in the step's output.
pub(crate) fn secrets(source: &Source) -> Vec<String> {
    vec![source.password.clone(), STANDARD.encode(format!("{}:{}", source.username, source.password))]
}
