-- A run is a job that is being executed; its tasks are the job's parallel instances.
CREATE TABLE runs (
    job_id uuid PRIMARY KEY,
    workflow_id uuid NOT NULL,
    org_id uuid NOT NULL,
    project_id uuid NOT NULL,
    pipeline_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('queued', 'running', 'finished')),
    status text,
    reason text,
    -- The event that asked for it, from which each task's spec is made at claim.
    ready jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    CHECK ((state = 'finished') = (status IS NOT NULL))
);

CREATE TABLE tasks (
    task_id uuid PRIMARY KEY,
    job_id uuid NOT NULL REFERENCES runs,
    org_id uuid NOT NULL,
    index int NOT NULL,
    total int NOT NULL,
    -- Place in line.
    position bigint GENERATED ALWAYS AS IDENTITY,
    -- waiting: has no slot. queued and leased hold one: slots are counted, never kept (R-22).
    state text NOT NULL CHECK (state IN ('waiting', 'queued', 'leased', 'finished')),
    -- Grows each time the task is queued; never shrinks (R-15).
    epoch bigint NOT NULL DEFAULT 0,
    requeues int NOT NULL DEFAULT 0,
    cancel_requested boolean NOT NULL DEFAULT false,
    claim_id uuid,
    instance_id uuid,
    public_key text,
    agent_version text,
    granted_at timestamptz,
    permit_at timestamptz,
    renewed_at timestamptz,
    deadline timestamptz,
    -- When the sweeper has to look again.
    next_action_at timestamptz,
    -- Whether the outcome came from the agent's report.
    reported boolean NOT NULL DEFAULT false,
    status text,
    reason text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    queued_at timestamptz,
    finished_at timestamptz,
    UNIQUE (job_id, index),
    CHECK ((state = 'leased') <= (claim_id IS NOT NULL AND deadline IS NOT NULL)),
    CHECK ((state = 'finished') = (status IS NOT NULL)),
    CHECK ((state IN ('queued', 'leased')) = (next_action_at IS NOT NULL))
);
CREATE INDEX tasks_holding_slots ON tasks (state) WHERE state IN ('queued', 'leased');
CREATE INDEX tasks_in_line ON tasks (position) WHERE state = 'waiting';
CREATE INDEX tasks_due ON tasks (next_action_at) WHERE next_action_at IS NOT NULL;

-- Jobs that may not be handed out, also when their readiness arrives later than the revocation (R-12).
CREATE TABLE revocations (
    job_id uuid PRIMARY KEY,
    revoked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Reports that came after the outcome: evidence that changes nothing.
CREATE TABLE late_reports (
    task_id uuid NOT NULL,
    epoch bigint NOT NULL,
    report jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, epoch)
);

CREATE FUNCTION refuse_change_of_finished() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is finished and cannot change', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER runs_are_final BEFORE UPDATE ON runs
    FOR EACH ROW WHEN (OLD.state = 'finished') EXECUTE FUNCTION refuse_change_of_finished();
CREATE TRIGGER tasks_are_final BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.state = 'finished') EXECUTE FUNCTION refuse_change_of_finished();
