//! What this service keeps of other services' news.

use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{
    Envelope, Event,
    conductor::{JobEnded, JobReady},
    permissions::RoleGranted,
};
use eventstore::{Key, Tx};
use model::plan::Step;
use serde_json::{Value, json};
use uuid::Uuid;

/// Whose variables each ready job may get, until it ends.
pub(crate) struct Jobs {
    /// Host of the installation, with its port: where the repositories are.
    pub(crate) host: String,
}

#[async_trait]
impl Group for Jobs {
    fn name(&self) -> &'static str {
        "contexts.jobs"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[JobReady::TYPE, JobEnded::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    fn relaxed(&self) -> bool {
        true // a copy: read again from the source after a crash
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            if message.is::<JobEnded>() {
                let ended: JobEnded = message.body_as()?;
                for sql in [
                    "DELETE FROM contexts.jobs WHERE job_id = $1",
                    "DELETE FROM contexts.deliveries WHERE job_id = $1",
                ] {
                    sqlx::query(sql).bind(ended.job_id.uuid()).execute(tx.conn()).await?;
                }
                continue;
            }
            let job: JobReady = message.body_as()?;
            sqlx::query(
                "INSERT INTO contexts.jobs (job_id, org_id, project_id, contexts, acting_user, continues, facts,
                     ssh_keys, checkout_key, claims)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
            )
            .bind(job.job_id.uuid())
            .bind(job.project.org_id.uuid())
            .bind(job.project.id.uuid())
            .bind(&job.contexts)
            .bind(job.acting_user.map(|user| user.uuid()))
            .bind(job.definition.continues.then(|| job.pipeline_id.uuid()))
            .bind(facts(&job))
            .bind(ssh_keys(&job.definition.steps))
            .bind(job.definition.steps.iter().any(|step| matches!(step, Step::Checkout { .. })))
            .bind(self.claims(&job))
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }
}

/// Fingerprints that the job's `add_ssh_keys` steps name: none of them, or one that names none, means all keys.
fn ssh_keys(steps: &[Step]) -> Option<Vec<&str>> {
    let lists = steps.iter().filter_map(|step| match step {
        Step::AddSshKeys { fingerprints, .. } => Some(fingerprints),
        _ => None,
    });
    let mut wanted: Option<Vec<&str>> = None;
    for list in lists {
        if list.is_empty() {
            return Some(Vec::new());
        }
        wanted.get_or_insert_default().extend(list.iter().map(String::as_str));
    }
    wanted
}

impl Jobs {
    /// What OIDC tokens of the job say of it, without their prefix (execution §21).
    fn claims(&self, job: &JobReady) -> Value {
        let reference = match (&job.vcs.branch, &job.vcs.tag) {
            (_, Some(tag)) => format!("refs/tags/{tag}"),
            (Some(branch), None) => format!("refs/heads/{branch}"),
            (None, None) => String::new(),
        };
        json!({
            "vcs-origin": format!("{}/{}", self.host, job.project.slug),
            "vcs-ref": reference,
            "pipeline-id": job.pipeline_id,
            // A project has one definition of its pipelines, and it has the project's id.
            "pipeline-definition-id": job.project.id,
            "workflow-id": job.workflow_id,
            "runner-class": job.definition.resource_class,
            "ssh-rerun": job.ssh.is_some(),
        })
    }
}

/// Pipeline values by name, for expressions of restrictions (config-language §20).
fn facts(job: &JobReady) -> Value {
    let branch = job.vcs.branch.as_deref();
    let mut facts = json!({
        "pipeline.id": job.pipeline_id,
        "pipeline.number": job.pipeline_number,
        "pipeline.project.slug": job.project.slug,
        "pipeline.project.type": job.project.slug.split('/').next(),
        "pipeline.git.revision": job.vcs.revision,
        "pipeline.git.branch": branch,
        "pipeline.git.branch.is_default": branch == Some(job.project.default_branch.as_str()),
        "pipeline.git.tag": job.vcs.tag,
        "pipeline.git.repo_owner": job.project.org,
        "pipeline.git.repo_name": job.project.name,
        "pipeline.trigger.type": job.trigger.kind,
        "pipeline.trigger_source": job.trigger.kind,
        // The one name that is no pipeline value (config-language §6.6).
        "job.ssh.enabled": job.ssh.is_some(),
    });
    // What is not there is undefined, as in a configuration.
    if let Some(facts) = facts.as_object_mut() {
        facts.retain(|_, value| !value.is_null());
    }
    facts
}

/// Who may use contexts.
pub(crate) struct Grants;

#[async_trait]
impl Group for Grants {
    fn name(&self) -> &'static str {
        "contexts.grants"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[RoleGranted::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let grant: RoleGranted = message.body_as()?;
            sqlx::query(
                "INSERT INTO contexts.grants (user_id, org_id, role) VALUES ($1, $2, $3)
                 ON CONFLICT (user_id, org_id) DO UPDATE SET role = excluded.role",
            )
            .bind(grant.user_id.uuid())
            .bind(grant.org_id.map_or(Uuid::nil(), |org| org.uuid()))
            .bind(&grant.role)
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }
}
