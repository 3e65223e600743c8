-- Lists of jobs that have a number, newest first, without sorting all of a project's or an organisation's.
CREATE INDEX jobs_newest_of_project ON jobs (project_id, created_at DESC, number DESC) WHERE number IS NOT NULL;
CREATE INDEX jobs_newest_of_org ON jobs (org_id, created_at DESC, number DESC) WHERE number IS NOT NULL;
CREATE INDEX jobs_by_pipeline ON jobs (pipeline_id);
-- One's own pipelines of a project.
DROP INDEX pipelines_by_actor;
CREATE INDEX pipelines_by_actor ON pipelines (actor, created_at DESC, id DESC) WHERE actor IS NOT NULL;
