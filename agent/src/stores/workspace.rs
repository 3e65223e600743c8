//! `persist_to_workspace` and `attach_workspace` (execution §16).

use super::{
    size,
    transfer::{self, call},
};
use crate::{
    files::{Ask, Packed},
    helper::{Failed, feed},
    output::Stream,
    steps::Runner,
};
use agent_api::stores::{Committed, LayerCommit, Layers};

const COMMITS: usize = 2;

impl Runner {
    pub(super) async fn persist_to_workspace(
        &self,
        number: u32,
        root: &str,
        paths: &[String],
        stream: &mut Stream,
    ) -> Result<(), Failed> {
        for _ in 0..COMMITS {
            stream.note("Creating workspace archive...")?;
            let ask = Ask::PackWorkspace { root: self.located(root), globs: paths.to_vec() };
            let control = &self.control;
            let uploaded =
                self.helper(&ask, stream, |ends| transfer::upload::<Packed>(control, ends)).await?;
            stream.note("Uploading workspace archive...")?;
            let bytes = uploaded.archive.bytes;
            let commit = LayerCommit { step: number, archive: uploaded.archive };
            if call::<_, Committed>(control, "workspace/commit", &commit).await? == Committed::Stored {
                let (entries, whole) = (uploaded.word.entries, size(bytes));
                return Ok(stream.note(&format!("Workspace layer stored: {entries} entries, {whole}"))?);
            }
        }
        Err(Failed::Told("the workspace layer could not be stored".into()))
    }

    pub(super) async fn attach_workspace(&self, at: &str, stream: &mut Stream) -> Result<(), Failed> {
        let Layers { layers } = call(&self.control, "workspace/layers", &serde_json::json!({})).await?;
        if layers.is_empty() {
            return Ok(stream.note("No workspace layers were persisted by upstream jobs.")?);
        }
        stream.note("Downloading workspace layers")?;
        for layer in &layers {
            stream.note(&format!(
                "  workflows/workspaces/{}/0/{}/{} ({}) - {}",
                self.spec.workspace_id,
                layer.job_id,
                layer.index,
                layer.job_name,
                size(layer.archive.bytes)
            ))?;
        }
        stream.note("Applying workspace layers")?;
        for layer in &layers {
            stream.note(&format!("  {}", layer.job_id))?;
        }
        let ask = Ask::UnpackLayers {
            root: self.located(at),
            after: layers.iter().map(|layer| layer.after.clone()).collect(),
        };
        let control = &self.control;
        self.helper(&ask, stream, |ends| async move {
            let (to, ended) = feed(ends);
            for layer in &layers {
                transfer::download(control, &layer.archive, &to).await?;
            }
            drop(to);
            ended.await.map_err(std::io::Error::other)?.map_err(|e| Failed::Told(e.to_string()))
        })
        .await
    }
}
