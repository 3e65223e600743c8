//! `gantry config`: every command by its exit code and by the files that it writes.

use clap::Parser;
use gantry_cli::{Command, Exit, Global};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const GOOD: &str =
    "version: 2.1\njobs:\n  build:\n    machine: true\n    steps:\n      - checkout\n      - run: make\n";
const BAD: &str = "version: 2.1\njobs:\n  build:\n    machine: true\n    steps:\n      - chekout\n";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, text).expect("file");
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs `gantry config …`; paths may be given as they are.
fn config(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Exit {
    let line =
        [&"gantry" as &dyn AsRef<std::ffi::OsStr>, &"config"].into_iter().chain(arguments.iter().copied());
    let parsed = Arguments::try_parse_from(line.map(|word| word.as_ref().to_owned())).expect("arguments");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(gantry_cli::run(&parsed.global, parsed.command))
}

#[test]
fn validate_tells_valid_invalid_and_missing_apart() {
    let folder = Folder::new();
    let (good, bad) = (folder.put("good.yml", GOOD), folder.put("bad.yml", BAD));
    assert_eq!(config(&[&"validate", &good]), Exit::Success);
    assert_eq!(config(&[&"validate", &good, &bad, &"--json"]), Exit::Invalid);
    assert_eq!(config(&[&"validate", &bad, &"--format", &"sarif"]), Exit::Invalid);
    assert_eq!(config(&[&"validate", &folder.path().join("none.yml")]), Exit::NotFound);
    let unused = folder.put("warned.yml", &format!("{GOOD}notify: {{}}\n"));
    assert_eq!(config(&[&"validate", &unused]), Exit::Success);
    assert_eq!(config(&[&"validate", &unused, &"--strict"]), Exit::Invalid);
}

#[test]
fn a_folder_is_its_configurations() {
    let folder = Folder::new();
    folder.put("a/.circleci/config.yml", GOOD);
    folder.put("a/.circleci/src/jobs/part.yml", "machine: true\n");
    folder.put("a/docker-compose.yml", "services: {}\n");
    folder.put("b/.circleci/orb.yml", "version: 2.1\ncommands: {c: {steps: [checkout]}}\n");
    assert_eq!(config(&[&"validate", &folder.path()]), Exit::Success);
    folder.put("b/.circleci/orb.yml", "version: 2.1\ncommands: {c: {steps: [chekout]}}\n");
    assert_eq!(config(&[&"validate", &folder.path()]), Exit::Invalid);
}

#[test]
fn orbs_come_from_folders_and_a_lock_pins_them() {
    let folder = Folder::new();
    let source = GOOD.replace("jobs:", "orbs: {o: acme/tool@1}\njobs:").replace("run: make", "o/say");
    let file = folder.put("config.yml", &source);
    let orbs = folder.path().join("orbs");
    folder.put("orbs/acme/tool@1.0.0.yml", "version: 2.1\ncommands: {say: {steps: [{run: hi}]}}\n");
    let lock = folder.path().join("orbs.lock");
    assert_eq!(config(&[&"validate", &file]), Exit::Invalid, "no folder, no orb");
    let update =
        config(&[&"validate", &file, &"--orb-dir", &orbs, &"--orb-lock", &lock, &"--update-orb-lock"]);
    assert_eq!(update, Exit::Success);
    // A newer version without the command: the lock keeps the old one.
    folder.put("orbs/acme/tool@1.1.0.yml", "version: 2.1\ncommands: {}\n");
    assert_eq!(config(&[&"validate", &file, &"--orb-dir", &orbs]), Exit::Invalid);
    assert_eq!(config(&[&"validate", &file, &"--orb-dir", &orbs, &"--orb-lock", &lock]), Exit::Success);
}

#[test]
fn format_writes_once_and_check_writes_nothing() {
    let folder = Folder::new();
    let text = GOOD.replace("      - ", "    -   ");
    let file = folder.put("config.yml", &text);
    assert_eq!(config(&[&"format", &"--check", &file]), Exit::Invalid);
    assert_eq!(fs::read_to_string(&file).expect("file"), text);
    assert_eq!(config(&[&"format", &file]), Exit::Success);
    assert_eq!(fs::read_to_string(&file).expect("file"), GOOD);
    assert_eq!(config(&[&"format", &"--check", &file]), Exit::Success);
}

#[test]
fn fix_mends_what_leaves_no_choice_and_only_once() {
    let folder = Folder::new();
    let file = folder.put("config.yml", &BAD.replace("    steps:", "    setps:"));
    assert_eq!(config(&[&"validate", &"--fix", &file]), Exit::Success);
    let mended = BAD.replace("chekout", "checkout");
    assert_eq!(fs::read_to_string(&file).expect("file"), mended);
    assert_eq!(config(&[&"validate", &"--fix", &file, &"--json"]), Exit::Success);
    assert_eq!(fs::read_to_string(&file).expect("file"), mended);
    let other = folder.put("other.yml", &GOOD.replace("make", "<< parameters.nothing_like_it >>"));
    assert_eq!(config(&[&"validate", &"--fix", &other]), Exit::Invalid);
}

#[test]
fn pack_diff_and_the_views() {
    let folder = Folder::new();
    folder.put("src/@config.yml", "version: 2.1\n");
    folder
        .put("src/jobs/build.yml", "machine: true\nsteps: [checkout, {run: <<include(scripts/make.sh)>>}]\n");
    folder.put("src/scripts/make.sh", "make");
    let packed = folder.path().join("packed.yml");
    assert_eq!(config(&[&"pack", &folder.path().join("src"), &"--output", &packed]), Exit::Success);
    let good = folder.put("good.yml", GOOD);
    assert_eq!(config(&[&"diff", &good, &packed]), Exit::Success, "both mean the same");
    let other = folder.put("other.yml", &GOOD.replace("make", "make all"));
    assert_eq!(config(&[&"diff", &good, &other]), Exit::Failed);
    for command in
        [&["process"] as &[&str], &["graph"], &["graph", "--format", "dot"], &["simulate", "--tag", "v1"]]
    {
        let mut line: Vec<&dyn AsRef<std::ffi::OsStr>> = Vec::new();
        command.iter().for_each(|word| line.push(word));
        line.push(&good);
        assert_eq!(config(&line), Exit::Success, "{command:?}");
    }
    assert_eq!(config(&[&"explain", &"jobs.build.steps[1].run.command", &good]), Exit::Success);
    assert_eq!(config(&[&"explain", &"jobs.biuld", &good]), Exit::NotFound);
    assert_eq!(config(&[&"simulate", &"--param", &"x", &good]), Exit::Usage);
}
