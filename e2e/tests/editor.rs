//! The language server in a real editor: Neovim without a screen opens three configurations, and does what people do.

use anyhow::{Context, ensure};
use gantry_e2e::binary;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(120);

const ORB: &str = "version: 2.1
commands:
  install:
    description: Installs the tool.
    parameters:
      to: {type: string, default: /opt}
    steps: [{run: install << parameters.to >>}]
jobs:
  scan:
    machine: true
    steps: [install]
";

/// Commands, an orb and a slip.
const FIRST: &str = "version: 2.1
orbs:
  tool: acme/tool@1
commands:
  greet:
    description: Says hello.
    parameters:
      who: {type: string, default: world}
    steps:
      - run: echo << parameters.who >>
jobs:
  build:
    machine: true
    steps:
      - chekout
      - greet: {who: you}
      - tool/install: {to: /usr}
workflows:
  main:
    jobs:
      - build
      - tool/scan: {requires: [build]}
";

/// Executors, anchors and a matrix.
const SECOND: &str = "version: 2.1
x-vars: &vars
  LEVEL: debug
executors:
  box:
    parameters: {tag: {type: string, default: stable}}
    docker: [{image: 'base:<< parameters.tag >>'}]
    environment: *vars
jobs:
  test:
    parameters: {os: {type: string}}
    executor: {name: box, tag: edge}
    steps:
      - run: echo 'é' << parameters.os >>
workflows:
  main:
    jobs:
      - test: {matrix: {parameters: {os: [a, b]}}}
      - hold: {type: approval, requires: [test]}
";

/// An inline orb, pipeline parameters and a job group.
const THIRD: &str = "version: 2.1
parameters:
  deploy: {type: boolean, default: false, description: Whether it goes out.}
orbs:
  own:
    commands:
      say: {steps: [{run: echo own}]}
jobs:
  pack: {machine: true, steps: [own/say]}
  ship: {machine: true, steps: [own/say]}
job-groups:
  release:
    jobs:
      - pack
      - ship: {requires: [pack]}
workflows:
  main:
    when: << pipeline.parameters.deploy >>
    jobs:
      - release: {serial-group: production}
";

/// Line and column of the `|` in a part of a text.
fn place(text: &str, part: &str) -> (usize, usize) {
    let bar = part.find('|').expect("a mark");
    let at = text.find(&part.replacen('|', "", 1)).unwrap_or_else(|| panic!("{part}")) + bar;
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count(), before[start..].encode_utf16().count())
}

fn step(what: &str, text: &str, part: &str) -> Value {
    let (line, column) = place(text, part);
    json!({ "what": what, "line": line, "column": column })
}

fn with(mut step: Value, key: &str, value: Value) -> Value {
    step[key] = value;
    step
}

struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("orbs/acme"))?;
        fs::write(folder.path().join("orbs/acme/tool@1.0.0.yml"), ORB)?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Opens a file and does these things; what each led to.
    async fn edit(&self, name: &str, text: &str, steps: &[Value]) -> anyhow::Result<Vec<Value>> {
        let file = self.path(name).join(".circleci/config.yml");
        fs::create_dir_all(file.parent().context("a folder")?)?;
        fs::write(&file, text)?;
        let (plan, report) = (self.path("plan.json"), self.path("report.json"));
        let _ = fs::remove_file(&report);
        let orbs = self.path("orbs");
        let cmd = json!([binary(), "config", "lsp", "--orb-dir", orbs]);
        let content = json!({ "file": file, "root": self.path(name), "cmd": cmd, "steps": steps });
        fs::write(&plan, content.to_string())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/editor/client.lua");
        let mut editor = Command::new("nvim")
            .args(["--headless", "-u", "NONE", "-i", "NONE", "-n", "-S"])
            .arg(script)
            .env("GANTRY_PLAN", &plan)
            .env("GANTRY_REPORT", &report)
            .env("GANTRY_CACHE_DIR", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("state"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let ended = tokio::time::timeout(LIMIT, editor.wait()).await;
        ended.with_context(|| format!("the editor did not come to an end with {name}"))??;
        let report: Value =
            serde_json::from_slice(&fs::read(&report).context("the editor wrote no report")?)?;
        ensure!(report.get("error").is_none(), "{name}: {report:#}");
        report["steps"].as_array().cloned().context("no steps")
    }
}

fn has(list: &Value, words: &[&str]) {
    let held: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    words.iter().for_each(|word| assert!(held.contains(word), "{word} is not among {held:?}"));
}

fn says(text: &Value, words: &[&str]) {
    let text = text.as_str().unwrap_or_default();
    words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
}

#[tokio::test]
async fn neovim_is_served_with_three_configurations() -> anyhow::Result<()> {
    if Command::new("nvim").arg("--version").output().await.is_err() {
        eprintln!("SKIPPED: nvim is not installed; `scripts/setup --tests` installs it");
        return Ok(());
    }
    let desk = Desk::new()?;
    let (typo, _) = place(FIRST, "- |chekout");
    let fixed = FIRST.replace("chekout", "checkout");
    let done = desk
        .edit(
            "first",
            FIRST,
            &[
                json!({ "what": "findings", "count": 1 }),
                step("hover", FIRST, "- gr|eet: {who"),
                step("definition", FIRST, "tool/ins|tall"),
                step("definition", FIRST, "{w|ho: you"),
                json!({ "what": "type", "line": typo, "lines": ["      - tool/"] }),
                json!({ "what": "completion", "line": typo, "column": 13 }),
                json!({ "what": "type", "line": typo, "lines": ["      - checkout"] }),
                json!({ "what": "findings", "count": 0 }),
                with(step("rename", &fixed, "- gr|eet: {who"), "name", json!("salute")),
                json!({ "what": "findings", "count": 0 }),
            ],
        )
        .await?;
    assert_eq!((&done[0][0]["line"], &done[0][0]["code"]), (&json!(typo), &json!("unknown-command")));
    says(&done[0][0]["message"], &["did you mean `checkout`?"]);
    says(&done[1], &["Says hello.", "`who`: string"]);
    assert_eq!(done[2]["line"], "  install:", "in the orb");
    says(&done[2]["file"], &["acme_tool@1.0.0.yml"]);
    says(&done[3]["line"], &["who: {type: string"]);
    has(&done[5], &["tool/install", "greet", "checkout", "run"]);
    assert_eq!(done[8], json!(fixed.replace("greet", "salute").trim_end()));

    let (line, _) = place(SECOND, "    executor: |{name");
    let done = desk
        .edit(
            "second",
            SECOND,
            &[
                json!({ "what": "findings", "count": 0 }),
                step("hover", SECOND, "'é' << parameters.|os"),
                step("definition", SECOND, "environment: *v|ars"),
                step("definition", SECOND, "{name: b|ox"),
                with(step("rename", SECOND, "'é' << parameters.|os"), "name", json!("system")),
                json!({ "what": "type", "line": line, "lines": ["    executor: "] }),
                json!({ "what": "completion", "line": line, "column": 14 }),
                json!({ "what": "findings", "count": 1 }),
            ],
        )
        .await?;
    says(&done[1], &["parameter", "of the job `test`", "`[a, b]` is given at line 18"]);
    assert_eq!(done[2]["line"], "x-vars: &vars");
    assert_eq!(done[3]["line"], "  box:");
    let renamed = SECOND.replace("{os:", "{system:").replace("parameters.os", "parameters.system");
    assert_eq!(done[4], json!(renamed.trim_end()));
    has(&done[6], &["box"]);
    assert_eq!(done[7][0]["line"], json!(line));

    let (line, column) = place(THIRD, "- ship: {requires: [|pack]}");
    let done = desk
        .edit(
            "third",
            THIRD,
            &[
                json!({ "what": "findings", "count": 0 }),
                step("hover", THIRD, "parameters.dep|loy"),
                step("definition", THIRD, "steps: [own/s|ay]}\n  ship"),
                step("definition", THIRD, "requires: [pa|ck"),
                json!({ "what": "completion", "line": line, "column": column }),
                with(step("rename", THIRD, "requires: [pa|ck"), "name", json!("bundle")),
                json!({ "what": "findings", "count": 0 }),
            ],
        )
        .await?;
    says(&done[1], &["of the pipeline", "Whether it goes out."]);
    says(&done[2]["line"], &["say: {steps"]);
    says(&done[3]["line"], &["  pack: {machine"]);
    has(&done[4], &["pack", "ship"]);
    let renamed = THIRD.replace("pack", "bundle");
    assert_eq!(done[5], json!(renamed.trim_end()));
    Ok(())
}
