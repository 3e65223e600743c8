-- Where a job stands with the serial group that it belongs to (execution §7).
ALTER TABLE jobs ADD COLUMN turn text NOT NULL DEFAULT 'free' CHECK (turn IN ('free', 'needed', 'wanted', 'given'));
-- Since when a job waits for its turn.
ALTER TABLE jobs ADD COLUMN turn_wanted_at timestamptz;
CREATE INDEX jobs_in_line ON jobs (turn_wanted_at) WHERE turn = 'wanted' AND ended_at IS NULL;
-- Of the queued jobs of a workflow, those that wait for their turn.
ALTER TABLE workflows ADD COLUMN turns integer NOT NULL DEFAULT 0;
-- Running workflows of a branch, for the automatic cancel of redundant ones.
ALTER TABLE workflows ADD COLUMN branch text;
CREATE INDEX workflows_of_branch ON workflows (project_id, branch) WHERE ended_at IS NULL AND branch IS NOT NULL;
-- The blob `plans/<digest>` that the workflow was made of, where its plan is too large for a message.
ALTER TABLE workflows ADD COLUMN plan_digest text;

-- Who holds the lock of a serial group, and who waits for it. The group's id is made of organisation and key.
CREATE TABLE serial_members (
    -- Order of arrival.
    seq             bigint GENERATED ALWAYS AS IDENTITY,
    group_id        uuid NOT NULL,
    job_id          uuid NOT NULL,
    workflow_id     uuid NOT NULL,
    project_id      uuid NOT NULL,
    pipeline_number bigint NOT NULL,
    holds           boolean NOT NULL,
    arrived_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_id, job_id)
);
-- One holds at a time, whatever the code does (R-22).
CREATE UNIQUE INDEX serial_holder ON serial_members (group_id) WHERE holds;
CREATE INDEX serial_line ON serial_members (group_id, seq);
CREATE INDEX serial_of_job ON serial_members (job_id);

-- Settings of projects that the conductor decides by.
CREATE TABLE project_settings (
    project_id  uuid PRIMARY KEY,
    auto_cancel boolean NOT NULL,
    version     bigint NOT NULL
);

-- Since when a job has its status.
ALTER TABLE jobs ADD COLUMN since timestamptz;

-- Pipelines whose branch may have older workflows that still run. A row goes when that was looked after.
CREATE TABLE newer_pipelines (
    pipeline_id     uuid PRIMARY KEY,
    project_id      uuid NOT NULL,
    branch          text NOT NULL,
    pipeline_number bigint NOT NULL,
    cause           uuid NOT NULL,
    trace           text,
    noted_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
