-- Self-hosted runners (execution §25): classes, the tokens with which runners serve them, and who was heard of.
CREATE TABLE runner_classes (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL,
    -- `namespace/name`; a namespace is one organisation's.
    name text NOT NULL UNIQUE,
    description text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE runner_tokens (
    id uuid PRIMARY KEY,
    class_id uuid NOT NULL REFERENCES runner_classes ON DELETE CASCADE,
    nickname text NOT NULL,
    sha256 text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX runner_tokens_of_class ON runner_tokens (class_id);

CREATE TABLE runners (
    class_id uuid NOT NULL REFERENCES runner_classes ON DELETE CASCADE,
    name text NOT NULL,
    hostname text NOT NULL,
    version text NOT NULL,
    first_connected timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_connected timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used timestamptz,
    PRIMARY KEY (class_id, name)
);

-- The self-hosted runner that took it.
ALTER TABLE tasks ADD COLUMN runner text;
-- Those that wait for one, by class.
CREATE INDEX tasks_for_runners ON tasks (org_id, resource_class, position)
    WHERE state = 'waiting' AND resource_class LIKE '%/%';
