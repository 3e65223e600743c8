//! What was seen, as a page.

use crate::rows::{Proof, ROWS};
use std::{fmt::Write, fs, path::Path, time::Duration};

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    AsPromised,
    /// Everything held, and it took longer than the matrix allows.
    Late,
    Broken,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::AsPromised => "as promised",
            Self::Late => "late",
            Self::Broken => "**broken**",
        }
    }
}

/// A row with one seed.
pub struct Outcome {
    pub row: &'static str,
    pub seed: u64,
    pub outage: Duration,
    pub notes: Vec<String>,
    pub recovered: Option<Duration>,
    pub verdict: Verdict,
}

impl Outcome {
    /// For whoever watches.
    pub fn line(&self) -> String {
        format!(
            "{} seed {}: {} — {}; recovery {}",
            self.row,
            self.seed,
            if self.verdict == Verdict::Broken { "--- FAILED" } else { self.verdict.text() },
            self.notes.join("; "),
            self.recovery(),
        )
    }

    fn recovery(&self) -> String {
        self.recovered.map_or_else(|| "–".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()))
    }
}

/// Writes the page of a run.
pub fn write(outcomes: &[Outcome], health: Duration, full: bool) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/failure-matrix.md");
    // A run of some rows leaves the others as they were seen last.
    let before = fs::read_to_string(&path).unwrap_or_default();
    let mut page = format!(
        "# The failure matrix, as it was seen\n\nWritten by a run of the test `matrix` with `GANTRY_UPDATE=1` ([how](../../e2e/README.md)); do \
         not edit it. Every row ran on the suite as separate processes on real servers (`scripts/stack`), with {}, while jobs ran. \
         In every row each job ran exactly once or was said to be lost where that is allowed, every workflow ended, every byte of \
         output was there, and `gantry admin verify` and the invariants found nothing; where not, the verdict is **broken** and what \
         was seen says why.\n\nRecovery is the time from the component's return until a push had led to a job that succeeded, which \
         takes {:.1} s here while nothing fails; late is what took longer than the limit and that. Seeds give the moment and the \
         victim: `GANTRY_ROWS=F27 GANTRY_SEEDS=11` replays one.\n\n",
        if full { "outages as long as the matrix says, up to two minutes" } else { "outages of seconds" },
        health.as_secs_f64(),
    );
    page.push_str("| row | what fails | seed | away | what was seen | limit | recovery | verdict |\n|---|---|---|---|---|---|---|---|\n");
    for row in &ROWS {
        let Proof::Here { within, .. } = row.proof else { continue };
        let limit = within.map_or_else(|| "–".to_owned(), |limit| format!("{limit} s"));
        let mine: Vec<_> = outcomes.iter().filter(|outcome| outcome.row == row.id).collect();
        if mine.is_empty() {
            let prefix = format!("| {} | ", row.id);
            let old: Vec<_> = before.lines().filter(|line| line.starts_with(&prefix)).collect();
            if old.is_empty() {
                writeln!(
                    page,
                    "| {} | {} | – | – | not part of this run | {limit} | – | – |",
                    row.id, row.fails
                )?;
            }
            for line in old {
                writeln!(page, "{line}")?;
            }
        }
        for one in mine {
            let seen = one.notes.join("; ").replace('|', "\\|").replace('\n', " ");
            writeln!(
                page,
                "| {} | {} | {} | {} s | {seen} | {limit} | {} | {} |",
                row.id,
                row.fails,
                one.seed,
                one.outage.as_secs(),
                one.recovery(),
                one.verdict.text()
            )?;
        }
    }
    page.push_str("\n## Rows that do not run here\n\n| row | what fails | why |\n|---|---|---|\n");
    for row in &ROWS {
        if let Proof::Not(why) = row.proof {
            writeln!(page, "| {} | {} | {why} |", row.id, row.fails)?;
        }
    }
    fs::write(path, page)?;
    Ok(())
}
