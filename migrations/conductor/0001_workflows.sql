-- A workflow's root: what is true of it as a whole. A step of it reads and writes this row, one job and the
-- jobs that directly wait for that one.
CREATE TABLE workflows (
    id              uuid PRIMARY KEY,
    version         bigint NOT NULL,
    pipeline_id     uuid NOT NULL,
    pipeline_number bigint NOT NULL,
    project_id      uuid NOT NULL,
    project         jsonb NOT NULL,
    name            text NOT NULL,
    status          text NOT NULL,
    -- Jobs per status.
    counts          jsonb NOT NULL,
    cancel          boolean NOT NULL DEFAULT false,
    error           boolean NOT NULL DEFAULT false,
    started_by      uuid,
    rerun_of        uuid,
    -- The first instance of the workflow in this pipeline; itself, where it is no rerun.
    workspace_id    uuid NOT NULL,
    max_auto_reruns integer NOT NULL DEFAULT 0,
    -- 0: not an automatic rerun.
    auto_rerun      integer NOT NULL DEFAULT 0,
    vcs             jsonb NOT NULL,
    trigger         jsonb NOT NULL,
    created_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    -- Every workflow that has not ended has a time when somebody looks at it (R-8).
    next_action_at  timestamptz,
    CONSTRAINT ended_or_due CHECK ((ended_at IS NULL) = (next_action_at IS NOT NULL)),
    CONSTRAINT ended_when_terminal CHECK ((ended_at IS NULL) = (status IN ('running', 'failing', 'on_hold', 'queued')))
);
CREATE INDEX workflows_due ON workflows (next_action_at) WHERE ended_at IS NULL;
CREATE INDEX workflows_instances ON workflows (workspace_id);

CREATE TABLE jobs (
    id               uuid PRIMARY KEY,
    workflow_id      uuid NOT NULL,
    -- Place in the file.
    position         integer NOT NULL,
    name             text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('build', 'approval', 'no-op')),
    status           text NOT NULL,
    -- Edges that are not satisfied yet.
    unmet            integer NOT NULL,
    -- Taken at first readiness, by build jobs only.
    number           bigint,
    cancel_requested boolean NOT NULL DEFAULT false,
    approver         uuid,
    approver_at      timestamptz,
    reason           text,
    -- The node as compiled, for the dispatcher and for reruns.
    plan             jsonb NOT NULL,
    -- The job of the instance before whose success a rerun kept.
    carried_from     uuid,
    ready_at         timestamptz,
    started_at       timestamptz,
    ended_at         timestamptz,
    UNIQUE (workflow_id, position),
    UNIQUE (workflow_id, name),
    CONSTRAINT approver_whole CHECK ((approver IS NULL) = (approver_at IS NULL)),
    CONSTRAINT ended_when_terminal CHECK
        ((ended_at IS NULL) = (status IN ('blocked', 'queued', 'not_running', 'running', 'on_hold')))
);
CREATE INDEX jobs_open ON jobs (workflow_id) WHERE ended_at IS NULL;

CREATE TABLE edges (
    upstream uuid NOT NULL,
    job      uuid NOT NULL,
    -- Terminal statuses of the upstream job that satisfy the edge.
    accepts  text[] NOT NULL,
    PRIMARY KEY (upstream, job)
);
CREATE INDEX edges_of_job ON edges (job);

-- The last job number of each project. Its row is locked after the locks of aggregates and held to the commit,
-- so that numbers have no holes.
CREATE TABLE project_counters (
    project_id uuid PRIMARY KEY,
    jobs       bigint NOT NULL
);

-- Terminal is final (R-9).
CREATE FUNCTION refuse_change_of_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % %: it has ended and does not change any more', TG_OP, TG_TABLE_NAME, OLD.id
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER workflows_final BEFORE UPDATE ON workflows
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL) EXECUTE FUNCTION refuse_change_of_ended();
CREATE TRIGGER jobs_final BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL) EXECUTE FUNCTION refuse_change_of_ended();
-- Only retention deletes, and says so.
CREATE TRIGGER workflows_kept BEFORE DELETE ON workflows
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION refuse_change_of_ended();
CREATE TRIGGER jobs_kept BEFORE DELETE ON jobs
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION refuse_change_of_ended();
