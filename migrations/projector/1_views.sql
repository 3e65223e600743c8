-- Query views. Everything here can be rebuilt from events; nothing decides by it.
-- No foreign keys: events of two producers arrive in either order.

CREATE TABLE projects (
    id             uuid PRIMARY KEY,
    org_id         uuid NOT NULL,
    org            text NOT NULL,
    name           text NOT NULL,
    slug           text NOT NULL UNIQUE,
    default_branch text NOT NULL,
    created_at     timestamptz NOT NULL,
    version        bigint NOT NULL
);
CREATE INDEX projects_by_org ON projects (org_id, name);

CREATE TABLE pipelines (
    id          uuid PRIMARY KEY,
    project_id  uuid NOT NULL,
    org_id      uuid NOT NULL,
    slug        text NOT NULL,
    number      bigint NOT NULL,
    state       text NOT NULL,
    errors      jsonb NOT NULL,
    trigger     jsonb NOT NULL,
    -- A column of its own, for the list of one's own pipelines.
    actor       uuid,
    revision    text NOT NULL,
    branch      text,
    tag         text,
    subject     text,
    created_at  timestamptz NOT NULL,
    version     bigint NOT NULL,
    UNIQUE (project_id, number)
);
CREATE INDEX pipelines_by_project ON pipelines (project_id, created_at DESC, id DESC);
CREATE INDEX pipelines_by_branch ON pipelines (project_id, branch, created_at DESC, id DESC);
CREATE INDEX pipelines_by_time ON pipelines (org_id, created_at DESC, id DESC);
CREATE INDEX pipelines_by_actor ON pipelines (actor, created_at DESC) WHERE actor IS NOT NULL;

CREATE TABLE workflows (
    id              uuid PRIMARY KEY,
    pipeline_id     uuid NOT NULL,
    pipeline_number bigint NOT NULL,
    project_id      uuid NOT NULL,
    org_id          uuid NOT NULL,
    slug            text NOT NULL,
    name            text NOT NULL,
    status          text NOT NULL,
    started_by      uuid,
    canceled_by     uuid,
    rerun_of        uuid,
    created_at      timestamptz NOT NULL,
    stopped_at      timestamptz,
    version         bigint NOT NULL
);
CREATE INDEX workflows_by_pipeline ON workflows (pipeline_id, created_at, id);

CREATE TABLE jobs (
    id             uuid PRIMARY KEY,
    workflow_id    uuid NOT NULL,
    pipeline_id    uuid NOT NULL,
    project_id     uuid NOT NULL,
    org_id         uuid NOT NULL,
    position       integer NOT NULL,
    name           text NOT NULL,
    kind           text NOT NULL,
    status         text NOT NULL,
    reason         text,
    number         bigint,
    -- [{"job_id", "accepts": [status]}]
    requires       jsonb NOT NULL,
    contexts       text[] NOT NULL DEFAULT '{}',
    executor       text,
    resource_class text,
    parallelism    integer NOT NULL DEFAULT 1,
    approved_by    uuid,
    canceled_by    uuid,
    created_at     timestamptz NOT NULL,
    queued_at      timestamptz,
    started_at     timestamptz,
    stopped_at     timestamptz,
    -- Version of the workflow, whose events speak of its jobs.
    version        bigint NOT NULL
);
CREATE INDEX jobs_by_workflow ON jobs (workflow_id, position);
CREATE INDEX jobs_by_number ON jobs (project_id, number DESC) WHERE number IS NOT NULL;

CREATE TABLE tasks (
    id         uuid PRIMARY KEY,
    job_id     uuid NOT NULL,
    index      integer NOT NULL,
    status     text NOT NULL,
    reason     text,
    started_at timestamptz,
    stopped_at timestamptz,
    version    bigint NOT NULL
);
CREATE INDEX tasks_by_job ON tasks (job_id, index);

CREATE TABLE steps (
    id           uuid PRIMARY KEY,
    task_id      uuid NOT NULL,
    job_id       uuid NOT NULL,
    index        integer NOT NULL,
    number       integer NOT NULL,
    name         text NOT NULL,
    status       text NOT NULL,
    bash_command text,
    exit_code    integer,
    background   boolean NOT NULL,
    started_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    bytes        bigint NOT NULL,
    log_state    text NOT NULL,
    sha256       text,
    -- Version of the task's record, whose events speak of its steps.
    version      bigint NOT NULL
);
CREATE INDEX steps_by_job ON steps (job_id, index, number);
