//! `gantry admin rebuild-records`: asks a running suite for it, some tasks at a time.

use cli::{Client, Exit, Failure};
use contracts::output::{RebuildRecords, RebuiltRecords};
use ids::TaskId;
use serde_json::json;
use std::process::ExitCode;

/// So many records that cannot be read are no accident of each of them.
const TOO_MANY: usize = 100;

/// Runs the command.
pub(super) async fn run(global: &cli::Global, after: Option<String>) -> Result<ExitCode, Failure> {
    let after: Option<TaskId> = after
        .map(|text| text.parse().map_err(|_| Failure::new(Exit::Usage, format!("{text} is no id of a task"))))
        .transpose()?;
    let client = Client::connect(global)?;
    let mut all = RebuiltRecords { next: after, ..RebuiltRecords::default() };
    loop {
        let ask = json!(RebuildRecords { after: all.next });
        let answer = client.post("/internal/records/rebuild", &ask).await.inspect_err(|_| cut_short(&all))?;
        let page: RebuiltRecords = serde_json::from_value(answer)
            .map_err(|error| Failure::new(Exit::Server, format!("the answer cannot be read: {error}")))?;
        all.add(page);
        if all.next.is_none() {
            break;
        }
        if all.unreadable.len() >= TOO_MANY {
            cut_short(&all);
            break;
        }
        if !global.json {
            eprintln!("{}", so_far(&all));
        }
    }
    if global.json {
        println!("{}", json!(all));
    } else {
        for one in &all.unreadable {
            println!("{}: {}", one.what, one.why);
        }
        eprintln!("{}", so_far(&all));
        if !all.unreadable.is_empty() {
            eprintln!(
                "{} sources cannot be read; everything else was made. Restore them, and repeat this.",
                all.unreadable.len()
            );
        }
    }
    Ok(if all.unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn so_far(all: &RebuiltRecords) -> String {
    let RebuiltRecords { tasks, written, current, .. } = all;
    format!("{tasks} tasks, {} documents looked at: {written} written, {current} current", written + current)
}

/// Says how to go on.
fn cut_short(all: &RebuiltRecords) {
    if let Some(after) = all.next {
        eprintln!("{}. To go on from here: gantry admin rebuild-records --after {after}", so_far(all));
    }
}
