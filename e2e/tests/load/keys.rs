//! The key that all processes sign with is replaced while jobs run (decision 26).

use crate::{
    rolling::{roll, used_all_the_while},
    world::World,
};
use anyhow::Context;
use std::{fs, os::unix::fs::OpenOptionsExt, time::Duration};

/// What the older key signed for running agents is renewed within it.
const RENEWED: Duration = Duration::from_secs(30);

pub async fn a_new_key_goes_unnoticed(world: &World) -> anyhow::Result<()> {
    let file = world.stack.folder.join("data/keys/signing");
    let digits = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let old = digits(&fs::read(&file).with_context(|| file.display().to_string())?);
    let new = digits(&[(); 32].map(|()| fastrand::u8(..)));
    let steps = [
        ("believed", format!("{old}\n{new}\n")),
        ("signing", format!("{new}\n{old}\n")),
        ("alone", format!("{new}\n")),
    ];
    used_all_the_while(world, async {
        for (what, text) in steps {
            println!("  the new key {what}");
            let draft = file.with_extension("new");
            let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            std::io::Write::write_all(&mut made, text.as_bytes())?;
            fs::rename(&draft, &file)?;
            roll(world).await?;
            tokio::time::sleep(RENEWED).await;
        }
        Ok(())
    })
    .await
}
