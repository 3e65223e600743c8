//! What is compiled, and what comes out.

use crate::orbs::{NoOrbs, OrbSource, UsedOrb};
use crate::{Diagnostic, PipelineParameter};
use model::plan::Plan;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static NO_PARAMETERS: LazyLock<serde_json::Map<String, serde_json::Value>> =
    LazyLock::new(serde_json::Map::new);

/// What is compiled. Start from [`Input::new`] and set what is known, so that new fields change nothing:
///
/// ```
/// # use gantry_compiler::{Input, NoOrbs};
/// let input = Input { orbs: &NoOrbs, ..Input::new("config.yml", "version: 2.1\n") };
/// ```
#[derive(Clone)]
pub struct Input<'a> {
    /// The file name to show, for example `.circleci/config.yml`.
    pub file: &'a str,
    /// Its text.
    pub source: &'a str,
    /// Pipeline parameters that the trigger, or the call that continued the pipeline, gave.
    pub parameters: &'a serde_json::Map<String, serde_json::Value>,
    /// Parameters that count only where the file declares them: those of the trigger when the file continues
    /// a pipeline (config-language §19).
    pub inherited_parameters: &'a serde_json::Map<String, serde_json::Value>,
    /// What `pipeline.…` means.
    pub values: PipelineValues,
    /// Where orbs come from.
    pub orbs: &'a dyn OrbSource,
    /// The workflow whose schedule (`triggers`) has come: it alone runs. Without, scheduled workflows do not run.
    pub schedule: Option<&'a str>,
    /// Whether the file continues a pipeline: it may not be a setup configuration itself, and it may be empty.
    pub continuation: bool,
}

impl<'a> Input<'a> {
    /// `source` with no parameters, values or orbs.
    pub fn new(file: &'a str, source: &'a str) -> Self {
        Self {
            file,
            source,
            parameters: &NO_PARAMETERS,
            inherited_parameters: &NO_PARAMETERS,
            values: PipelineValues::default(),
            orbs: &NoOrbs,
            schedule: None,
            continuation: false,
        }
    }
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What is known about the pipeline before it is compiled (config-language §20).
#[derive(Default, Clone, Debug)]
pub struct PipelineValues {
    /// `pipeline.id`.
    pub id: String,
    /// `pipeline.number`.
    pub number: i64,
    /// `pipeline.project.slug`.
    pub project_slug: String,
    /// `pipeline.project.git_url`.
    pub git_url: String,
    /// `pipeline.project.type`.
    pub project_type: String,
    /// `pipeline.git.branch`; none for a tag.
    pub branch: Option<String>,
    /// `pipeline.git.tag`; none for a branch.
    pub tag: Option<String>,
    /// `pipeline.git.revision`.
    pub revision: String,
    /// `pipeline.git.base_revision`.
    pub base_revision: Option<String>,
    /// `pipeline.trigger_source`.
    pub trigger_source: String,
    /// All others by their whole name (`pipeline.git.commit.subject`): texts, numbers, booleans. They also
    /// override the fields above. A name that the language does not know is ignored.
    pub more: BTreeMap<String, serde_json::Value>,
}

/// What a configuration means for one trigger.
#[derive(Debug)]
pub struct Compiled {
    /// The workflows that run, without the jobs that filters remove.
    pub plan: Plan,
    /// The compiled configuration as text, with all jobs and their filters.
    pub processed: String,
    /// What should be looked at although it runs.
    pub warnings: Vec<Diagnostic>,
    /// Orbs from outside of the file, each once.
    pub orbs: Vec<UsedOrb>,
    /// The pipeline parameters that the file declares, in its order.
    pub parameters: Vec<PipelineParameter>,
}
