-- When a pipeline, a workflow, a job or a step of it changed last: who follows a list goes on from here after a break.
ALTER TABLE pipelines ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now();
UPDATE pipelines SET changed_at = created_at;
CREATE INDEX pipelines_changed_of_project ON pipelines (project_id, changed_at);
CREATE INDEX pipelines_changed_of_org ON pipelines (org_id, changed_at);
