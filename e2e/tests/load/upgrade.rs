//! An upgrade that rolls, and the way back, with two builds side by side on one database (reliability §12).

use crate::{
    rolling::{roll, used_all_the_while},
    world::World,
};
use anyhow::{Context, ensure};
use std::{env, path::PathBuf};

pub async fn builds_change_unnoticed(world: &World) -> anyhow::Result<()> {
    let Some(other) = env::var_os("GANTRY_OTHER_BIN").map(PathBuf::from) else {
        println!(
            "  NOT TESTED: upgrades. GANTRY_OTHER_BIN names the folder of another build of gantry and gantry-runner"
        );
        return Ok(());
    };
    for program in ["gantry", "gantry-runner"] {
        ensure!(other.join(program).exists(), "{} has no {program}", other.display());
    }
    let other = std::fs::canonicalize(&other).with_context(|| other.display().to_string())?;
    let ours = world.programs.ours();
    let steps = [("the other build", other.as_path()), ("ours again", ours)];
    used_all_the_while(world, async {
        for (what, build) in steps {
            println!("  to {what}: {}", build.display());
            world.programs.set(build)?;
            // Migrations of a release come before its processes; those of an older one change nothing.
            world.stack.migrate().await?;
            roll(world).await?;
        }
        Ok(())
    })
    .await
}
