//! Many jobs that all write as much as they can be expected to, each watched by somebody.

use super::{printing, settle, watch};
use crate::{
    files,
    machine::{Limits, resident},
    numbers::{ms, percentile, ratio, round, spread},
};
use anyhow::{Context, ensure};
use gantry_e2e::Suite;
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// How long each job writes.
const SECONDS: usize = 10;
/// Lines of each second, and bytes of a line: 1 MB.
const LINES: usize = 100;
const LINE: usize = 10_000;
const BAR: Duration = Duration::from_millis(500);

/// From the moment at which a job prints a line to the one at which its watcher has it, with so many jobs at once; and what
/// their agents take of memory meanwhile.
pub async fn measure(suite: &Suite, work: &Path, jobs: usize, limits: &Limits) -> anyhow::Result<Value> {
    let project = format!("flood-{jobs}");
    let gate = work.join(format!("{project}-gate"));
    let lines = SECONDS * LINES;
    // What is due next is written when it is due: a pause after each line would write less.
    let program = format!(
        "import sys, time; begun = time.time(); pad = b'x' * ({LINE} - 21); \
         [(time.sleep(max(0, begun + n / {LINES} - time.time())), sys.stdout.buffer.write(b'%d %s\\n' % (time.time_ns(), pad)), \
         sys.stdout.flush()) for n in range({lines})]"
    );
    let command =
        format!("until test -e {}; do sleep 0.1; done; exec python3 -c \"{program}\"", gate.display());
    let mut config = format!(
        "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run:\n          name: print\n          command: |\n            {command}\nworkflows:\n  main:\n    jobs:\n"
    );
    for job in 0..jobs {
        config.push_str(&format!("      - one: {{ name: j{job} }}\n"));
    }
    let files = files(work, &format!("{project}-files"), &config)?;
    suite.push(work, &project, &files, "refs/heads/main").await?;
    let mut watchers = tokio::task::JoinSet::new();
    for number in 1..=jobs {
        watchers.spawn(watch(printing(suite, &project, number).await?));
    }
    let before = agents(suite)?;
    fs::write(&gate, "")?;
    tokio::time::sleep(Duration::from_secs(SECONDS as u64 / 2)).await;
    let amid = agents(suite)?;
    let mut delays = Vec::new();
    while let Some(watched) = watchers.join_next().await {
        let watched = watched??;
        ensure!(watched.len() == lines, "{} lines of {lines} were seen", watched.len());
        delays.extend(watched);
    }
    settle(suite, &project, 1).await?;
    let (p95, offered) = (percentile(&mut delays, 95), (jobs * LINES * LINE) as f64);
    Ok(json!({
        "jobs": jobs, "mb_per_s": round(offered / 1e6), "times_a_terminal_alone": round(offered / limits.terminal), "delay": spread(&mut delays),
        "bar_p95_ms": ms(BAR), "of_the_bar": ratio(p95, BAR), "kib_per_agent_waiting": before / jobs as u64,
        "kib_per_agent_writing": amid / jobs as u64,
    }))
}

/// Proportional memory of all agents with their helpers, in KiB.
fn agents(suite: &Suite) -> anyhow::Result<u64> {
    resident(&[suite.pid])?["proportional_kib"]["gantry-runner"].as_u64().context("no agent runs")
}
