//! A suite with one pushed project.

use anyhow::Context;
use gantry_e2e::{Suite, until};
use serde_json::Value;
use std::{fs, time::Duration};

pub const LIMIT: Duration = Duration::from_secs(120);

/// A running suite and where it lies.
pub struct World {
    pub suite: Suite,
    pub work: tempfile::TempDir,
}

impl World {
    pub async fn up(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let work = tempfile::tempdir()?;
        let suite = Suite::up_with(&work.path().join("data"), &[], environment).await?;
        Ok(Self { suite, work })
    }

    /// Pushes a configuration; its pipeline's id.
    pub async fn push(&self, project: &str, config: &str) -> anyhow::Result<String> {
        let files = self.work.path().join("files").join(project);
        fs::create_dir_all(files.join(".circleci"))?;
        fs::write(files.join(".circleci/config.yml"), config)?;
        self.suite.push(self.work.path(), project, &files, "refs/heads/main").await?;
        let path = format!("/api/v2/project/git/local/{project}/pipeline");
        until("the pipeline", LIMIT, || async {
            let found = self.suite.items(&path).await?;
            Ok(found.first().and_then(|pipeline| Some(pipeline["id"].as_str()?.to_owned())))
        })
        .await
    }

    /// The same for a project that has pipelines.
    pub async fn push_another(&self, project: &str, config: &str) -> anyhow::Result<String> {
        let path = format!("/api/v2/project/git/local/{project}/pipeline");
        let before = self.suite.items(&path).await?.len();
        self.push(project, config).await?;
        until("another pipeline", LIMIT, || async {
            let found = self.suite.items(&path).await?;
            let newest = found.iter().max_by_key(|pipeline| pipeline["number"].as_i64());
            let newest = newest.filter(|_| found.len() > before);
            Ok(newest.and_then(|pipeline| Some(pipeline["id"].as_str()?.to_owned())))
        })
        .await
    }

    /// The pipeline's only workflow, as soon as it is so.
    pub async fn workflow(&self, pipeline: &str, so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        until("the workflow", LIMIT, || async {
            let found = self.suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
            Ok(found.into_iter().find(|workflow| so(workflow)))
        })
        .await
    }

    /// A job of a workflow by its name.
    pub async fn job(&self, workflow: &Value, name: &str) -> anyhow::Result<Value> {
        let id = workflow["id"].as_str().context("no id")?;
        let jobs = self.suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        jobs.into_iter().find(|job| job["name"] == name).with_context(|| format!("no job {name}"))
    }

    /// Sends a GraphQL document; status and answer.
    pub async fn graphql(&self, query: &str) -> anyhow::Result<(u16, Value)> {
        self.suite.post("/graphql", &serde_json::json!({ "query": query })).await
    }
}
