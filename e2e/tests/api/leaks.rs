//! Secret values, printed by a job in every form that security §4.5 names, and looked for in everything that is kept: by
//! encoders that have nothing in common with those that hide them.

use crate::support::{LIMIT, World};
use anyhow::{Context, ensure};
use gantry_e2e::{Suite, stack, until};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SCRIPT: &str = include_str!("leaks/forms.py");
/// Name and value: characters that encoders change, several lines, and nothing but letters.
const SECRETS: [(&str, &str); 3] = [
    ("LEAK_AWKWARD", "p@ss'w0rd\"$x&y/<z>+é%k\\n=~3fQ"),
    (
        "LEAK_LINES",
        "-----BEGIN Q7 KEY-----\nMIIEvQ/IBADAN+Bgkqh kiG9w0\nqGSIb3DQ'EBAQUAA4\n-----END Q7 KEY-----\n",
    ),
    ("LEAK_PLAIN", "Zq7vXn2LpW8sTk4RmB6y"),
];

/// The product's own, and what it stores in.
const PROGRAMS: [&str; 10] = [
    "gantry",
    "gantry-runner",
    "postgres",
    "beam.smp",
    "redis-server",
    "nomad",
    "vault",
    "versitygw",
    "haproxy",
    "ferretdb",
];

/// Of a value, or of all; the values are in the script's environment and never among its arguments.
fn script(folder: &Path, more: &[&str]) -> anyhow::Result<Vec<u8>> {
    let file = folder.join("forms.py");
    fs::write(&file, SCRIPT)?;
    let mut command = Command::new("python3");
    let output = command.arg(&file).args(SECRETS.map(|(name, _)| name)).args(more).envs(SECRETS).output()?;
    ensure!(output.status.success(), "forms.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).context("no hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Everything that is looked for.
struct Needles(BTreeSet<Vec<u8>>);

impl Needles {
    /// Made by a process of its own; that its own output holds them all shows that the search finds what is there.
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(script(folder, &["--needles"])?)?;
        let needles = Self(text.lines().map(unhex).collect::<Result<_, _>>()?);
        let printed = script(folder, &[])?;
        let found = needles.within(&printed).len();
        // Wrapped lines and colours lie between the parts of a few.
        ensure!(found + 8 >= needles.0.len() && found > 100, "{found} of {} are found", needles.0.len());
        Ok(needles)
    }

    fn within(&self, bytes: &[u8]) -> Vec<&Vec<u8>> {
        let holds = |needle: &&Vec<u8>| memmem(bytes, needle);
        self.0.iter().filter(holds).collect()
    }

    fn check(&self, place: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let found = self.within(bytes);
        let shown: Vec<_> = found.iter().map(|needle| String::from_utf8_lossy(needle)).collect();
        ensure!(found.is_empty(), "{place} holds {} forms of secrets: {shown:?}", found.len());
        Ok(())
    }
}

/// Whether bytes hold others: by the first byte, then all.
fn memmem(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if bytes[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), all),
            Ok(kind) if kind.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
}

/// Arguments and environment of every process of [`PROGRAMS`].
fn processes(needles: &Needles) -> anyhow::Result<usize> {
    let mut looked_at = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(program) = fs::read_link(entry.path().join("exe")) else { continue };
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !PROGRAMS.contains(&name.trim_end_matches(" (deleted)")) {
            continue;
        }
        looked_at += 1;
        for part in ["cmdline", "environ"] {
            // It may have ended meanwhile.
            let bytes = fs::read(entry.path().join(part)).unwrap_or_default();
            needles.check(&format!("{part} of {name}"), &bytes)?;
        }
    }
    Ok(looked_at)
}

/// Everything in a database whose place these arguments name.
fn dump(place: &[&OsStr]) -> anyhow::Result<Vec<u8>> {
    let output =
        Command::new(gantry_e2e::postgres("pg_dumpall")).args(["-l", "postgres"]).args(place).output()?;
    ensure!(output.status.success(), "pg_dumpall: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Looks into every file below these folders.
fn search(needles: &Needles, folders: &[&Path]) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for folder in folders {
        if folder.is_file() { kept.push(folder.to_path_buf()) } else { files(folder, &mut kept) }
    }
    ensure!(kept.len() > 100, "{} files", kept.len());
    for file in kept {
        needles.check(&file.display().to_string(), &fs::read(&file).unwrap_or_default())?;
    }
    Ok(())
}

async fn set_secrets(world: &World) -> anyhow::Result<()> {
    let suite = &world.suite;
    let [awkward, of_context @ ..] = SECRETS;
    let body = json!({ "name": awkward.0, "value": awkward.1 });
    let (status, answer) = suite.post("/api/v2/project/git/local/leaks/envvar", &body).await?;
    ensure!(status == 201, "{status} {answer}");
    let all = suite.get("/api/v2/me/collaborations").await?;
    let org = all.as_array().into_iter().flatten().find(|org| org["name"] == "local");
    let owner = json!({ "id": org.context("no organisation local")?["id"], "type": "organization" });
    let (_, context) = suite.post("/api/v2/context", &json!({ "name": "leaks", "owner": owner })).await?;
    let id = context["id"].as_str().context("no context")?;
    for (name, value) in of_context {
        let path = format!("/api/v2/context/{id}/environment-variable/{name}");
        let set = suite.request("PUT", &path).json(&json!({ "value": value })).send().await?;
        set.error_for_status()?;
    }
    Ok(())
}

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        eprintln!("NOT TESTED: what leaks is looked for with python3");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_form_of_a_secret_is_kept_anywhere() -> anyhow::Result<()> {
    if !has_python() {
        return Ok(());
    }
    let world = World::up(&[]).await?;
    let needles = run(&world).await?;
    let data = world.work.path().join("data");
    let folder = fs::canonicalize(data.join("run"))?;
    let place = ["-U".as_ref(), "gantry".as_ref(), "-h".as_ref(), folder.as_os_str()];
    needles.check("the database", &dump(&place)?)?;
    search(&needles, &[&data, &data.with_extension("log")])?;
    world.suite.down().await
}

/// The same with every service and server a process of its own: queues, jobs of Nomad, buckets and caches too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_form_of_a_secret_is_kept_on_the_stack() -> anyhow::Result<()> {
    let (Some(suite), Some(folder)) = (Suite::stack().await?, env::var_os("GANTRY_STACK")) else {
        eprintln!("left out: GANTRY_TEST_STACK and GANTRY_STACK are not set");
        return Ok(());
    };
    if !has_python() {
        return Ok(());
    }
    let folder = PathBuf::from(folder);
    let world = World { suite, work: tempfile::tempdir()? };
    let needles = run(&world).await?;
    let port = |name: &str| {
        let port =
            stack::port(&folder.join("ports"), name).with_context(|| format!("the stack has no port {name}"));
        port.map(|port| port.to_string())
    };
    let at = port("postgres")?;
    let place = ["-U", "postgres", "-h", "127.0.0.1", "-p", &at].map(OsStr::new);
    needles.check("the database", &dump(&place)?)?;
    let live = world.work.path().join("live.rdb");
    let saved = Command::new("redis-cli")
        .args(["-p", &port("redis")?, "--rdb"])
        .arg(&live)
        .output()?
        .status
        .success();
    ensure!(saved && live.is_file(), "what Redis holds was not saved");
    search(&needles, &[&folder, &live])
}

/// Runs the job that does all it can to have secrets kept, and looks at what the suite shows of it.
async fn run(world: &World) -> anyhow::Result<Needles> {
    let needles = Needles::of(world.work.path())?;
    // Makes the project.
    world.push("leaks", "version: 2.1\njobs: {}\n").await?;
    set_secrets(world).await?;
    let (up, go_on) = (world.work.path().join("gates/up"), world.work.path().join("gates/go-on"));
    let gates = up.parent().context("no folder")?;
    fs::create_dir_all(gates)?;
    // The job is another user's, who has to find and make the gates.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(world.work.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(gates, fs::Permissions::from_mode(0o777))?;
    let names = SECRETS.map(|(name, _)| name).join(" ");
    let config = format!(
        r#"version: 2.1
jobs:
  build:
    machine: true
    steps:
      - run: |
          cat > forms.py <<'END'
{script}
          END
      - run: python3 forms.py {names}
      - run:
          name: in pieces
          command: python3 forms.py {names} | tr -d '\000' | while IFS= read -r -n 7 -d '' part || test -n "$part"; do printf %s "$part"; done
      - run: {{ name: traced, command: "set -x; for value in \"$LEAK_AWKWARD\" \"$LEAK_LINES\" \"$LEAK_PLAIN\"; do : \"$value\"; done; env" }}
      - run: touch {up}; until test -e {go_on}; do sleep 0.05; done
      - run: 'mkdir -p out reports; echo content > "out/of $LEAK_PLAIN"; echo "<testsuite><testcase name=\"$LEAK_PLAIN\" classname=\"a\"><failure>got $LEAK_PLAIN</failure></testcase></testsuite>" > reports/a.xml'
      - store_artifacts: {{ path: out }}
      - store_test_results: {{ path: reports }}
      - save_cache: {{ key: "of-{{{{ .Environment.LEAK_PLAIN }}}}", paths: [reports] }}
      - restore_cache: {{ name: found, keys: ["of-{{{{ .Environment.LEAK_PLAIN }}}}"] }}
      - run: {{ name: fails, command: 'echo "$LEAK_LINES" | base64 >&2; /no/such/$LEAK_PLAIN' }}
workflows: {{ main: {{ jobs: [{{ build: {{ context: leaks }} }}] }} }}
"#,
        script = SCRIPT.lines().map(|line| format!("          {line}")).collect::<Vec<_>>().join("\n"),
        up = up.display(),
        go_on = go_on.display(),
    );
    let pipeline = world.push_another("leaks", &config).await?;
    until("the job in its midst", LIMIT, || async { Ok(up.exists().then_some(())) }).await?;
    ensure!(processes(&needles)? >= 3, "server, database and agent run");
    fs::write(&go_on, "")?;
    let workflow = world.workflow(&pipeline, |workflow| !workflow["stopped_at"].is_null()).await?;
    ensure!(workflow["status"] == "failed", "{workflow}");
    let job = world.job(&workflow, "build").await?;
    let number = job["job_number"].as_i64().context("no number")?;
    let build = world.suite.get(&format!("/api/v1.1/project/git/local/leaks/{number}")).await?;
    needles.check("the build", build.to_string().as_bytes())?;
    let (mut logs, mut hidden) = (0, 0);
    for step in build["steps"].as_array().into_iter().flatten() {
        let id = step["actions"][0]["step_id"].as_str().context("no step id")?;
        let said = world.suite.bytes(&format!("/logs/{id}/raw")).await?;
        needles.check(&format!("the log of {}", step["name"]), &said)?;
        (logs, hidden) = (logs + 1, hidden + String::from_utf8_lossy(&said).matches("**REDACTED**").count());
    }
    ensure!(logs >= 11 && hidden > 200, "{logs} logs with {hidden} values hidden");
    let path = format!("/api/v2/project/git/local/leaks/{number}");
    for list in ["artifacts", "tests"] {
        let items: Vec<Value> = world.suite.items(&format!("{path}/{list}")).await?;
        ensure!(items.len() == 1, "{list}: {items:?}");
        needles.check(list, Value::from(items).to_string().as_bytes())?;
    }
    Ok(needles)
}
