-- Contexts, variables and deliveries. Values are ciphertext of the secrets port; keys never come here.

CREATE TABLE contexts (
    id         uuid PRIMARY KEY,
    org_id     uuid NOT NULL,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, name)
);

CREATE TABLE variables (
    scope       text NOT NULL CHECK (scope IN ('context', 'project')),
    scope_id    uuid NOT NULL,
    name        text NOT NULL,
    -- Counts up at each change; part of the label, so that an older ciphertext does not open either.
    version     bigint NOT NULL,
    sealed      bytea NOT NULL,
    key_version bigint NOT NULL,
    -- Four hex digits of a keyed hash: shows that a value changed and nothing of the value.
    fingerprint text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, scope_id, name)
);
CREATE INDEX variables_by_key ON variables (key_version);

-- What the conductor says about ready jobs: whose variables each may get.
CREATE TABLE jobs (
    job_id      uuid PRIMARY KEY,
    org_id      uuid NOT NULL,
    project_id  uuid NOT NULL,
    contexts    text[] NOT NULL,
    acting_user uuid
);

-- Roles as `permissions` publishes them; the nil organisation stands for "everywhere".
CREATE TABLE grants (
    user_id uuid NOT NULL,
    org_id  uuid NOT NULL,
    role    text NOT NULL,
    PRIMARY KEY (user_id, org_id)
);

-- One delivery per task and epoch.
CREATE TABLE deliveries (
    task_id  uuid NOT NULL,
    epoch    bigint NOT NULL,
    job_id   uuid NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, epoch)
);
