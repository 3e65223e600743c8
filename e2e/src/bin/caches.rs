//! Measures a cache of 1 GB in 50,000 files against `tar | zstd -3` to disk and back, on the same machine in the same
//! job: `GANTRY_BIN=target/release/gantry cargo run --profile ci -p gantry-e2e --bin caches [MEGABYTES [FILES]]`.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use serde_json::Value;
use std::{fs, time::Duration};

const LIMIT: Duration = Duration::from_secs(1800);

/// Half of each file is noise, half repeats: about what dependencies compress to. Everything is read from memory and
/// written beside what is there: nothing is removed in between, because ext4 does not take the number of a file that
/// was removed in the last minutes, and looks for another one file by file. What one step wrote is on the disk before
/// the next begins.
fn config(megabytes: usize, files: usize) -> String {
    let size = megabytes * 1_000_000 / files;
    format!(
        r#"version: 2.1
jobs:
  build:
    machine: true
    steps:
      - run:
          name: make
          command: |
            python3 - <<'END'
            import os, random
            random.seed(1)
            for n in range({files}):
                folder = os.path.expanduser("~/deps/%03d" % (n % 500))
                os.makedirs(folder, exist_ok=True)
                size = int({size} * random.uniform(0.2, 1.8))
                with open("%s/%d" % (folder, n), "wb") as file:
                    file.write(random.randbytes(size // 2) + (b"text of file %d " % n) * (size // 30))
            END
            du -sh ~/deps
      - run: {{ name: warm, command: "cat ~/deps/*/* > /dev/null" }}
      - run: {{ name: settle, command: "sync; mkdir ~/back" }}
      - run: {{ name: tar out, command: "tar -C ~ -c deps | zstd -3 -q > ~/deps.tar.zst && ls -l ~/deps.tar.zst" }}
      - run: {{ name: settle, command: sync }}
      - run: {{ name: tar in, command: "zstd -d -q < ~/deps.tar.zst | tar -C ~/back -x" }}
      - run: {{ name: settle, command: "sync; mv ~/back ~/aside" }}
      - save_cache: {{ name: save, key: first, paths: [~/deps] }}
      - run: {{ name: settle, command: sync }}
      - save_cache: {{ name: save unchanged, key: second, paths: [~/deps] }}
      - run: {{ name: settle, command: "mv ~/deps ~/before; sync" }}
      - restore_cache: {{ name: restore, key: second }}
      - run: {{ name: compare, command: "diff -r --no-dereference ~/deps ~/before && echo same" }}
workflows: {{ main: {{ jobs: [build] }} }}
"#
    )
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let megabytes = words.next().transpose()?.unwrap_or(1000);
    let files = words.next().transpose()?.unwrap_or(50_000);
    let work = tempfile::tempdir()?;
    let suite = Suite::up(&work.path().join("data"), &[]).await?;
    let repo = work.path().join("repo");
    fs::create_dir_all(repo.join(".circleci"))?;
    fs::write(repo.join(".circleci/config.yml"), config(megabytes, files))?;
    suite.push(&work.path().join("repositories"), "caches", &repo, "refs/heads/main").await?;
    let path = "/api/v1.1/project/git/local/caches/1";
    let build = until("the end of the job", LIMIT, || async {
        let build = suite.get(path).await.unwrap_or_default();
        Ok((build["lifecycle"] == "finished").then_some(build))
    })
    .await?;
    let steps = build["steps"].as_array().context("no steps")?;
    let action = |name: &str| -> anyhow::Result<&Value> {
        let step = steps.iter().find(|step| step["name"] == name);
        step.map(|step| &step["actions"][0]).with_context(|| format!("no step {name}"))
    };
    let seconds = |name: &str| -> anyhow::Result<f64> {
        Ok(action(name)?["run_time_millis"].as_f64().with_context(|| format!("{name} has no time"))? / 1000.0)
    };
    for step in ["make", "tar out", "save", "save unchanged", "restore", "compare"] {
        let id = action(step)?["step_id"].as_str().unwrap_or_default().to_owned();
        let said = suite.bytes(&format!("/logs/{id}/raw")).await?;
        println!("{step}:\n{}", String::from_utf8_lossy(&said[..said.len().min(2000)]));
    }
    let (out, back) = (seconds("tar out")?, seconds("tar in")?);
    let (save, again, restore) = (seconds("save")?, seconds("save unchanged")?, seconds("restore")?);
    println!("tar | zstd -3: {out:.1} s out, {back:.1} s back");
    println!(
        "save {save:.1} s, restore {restore:.1} s: {:.2} × (limit 1.3)",
        (save + restore) / (out + back)
    );
    println!(
        "save unchanged {again:.1} s: {:.2} × (limit 0.5), {:.2} × of the way out alone",
        again / (out + back),
        again / out
    );
    ensure!(build["outcome"] == "success", "the job is {}", build["outcome"]);
    suite.down().await
}
