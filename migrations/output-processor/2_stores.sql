-- Jobs whose steps keep or fetch files, as the conductor announced them: the scope of what their tasks may read and
-- write is computed from here, never sent.
CREATE TABLE jobs (
    job_id       uuid        PRIMARY KEY,
    org_id       uuid        NOT NULL,
    project_id   uuid        NOT NULL,
    workspace_id uuid        NOT NULL,
    name         text        NOT NULL,
    number       bigint      NOT NULL,
    branch       text,
    revision     text        NOT NULL,
    known_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX jobs_known ON jobs (known_at);

-- Everything that agents upload: one blob each, under a name that is used once (key `stores/<object_id>`).
-- promised: a URL was given away, nothing is visible; live: verified and visible; deleted: invisible, the bytes go at
-- `due`, and then the row. `due` of a promise is when it is given up, of a live one the end of its retention.
CREATE TABLE objects (
    object_id uuid        PRIMARY KEY,
    scope     uuid        NOT NULL,
    task_id   uuid        NOT NULL,
    epoch     bigint      NOT NULL,
    kind      text        NOT NULL CHECK (kind IN ('chunk', 'artifact', 'reports')),
    size      bigint      NOT NULL,
    sha256    bytea       NOT NULL,
    -- Of a chunk before compression.
    content_sha256 bytea,
    content_size   integer,
    -- Of an artifact.
    path      text,
    state     text        NOT NULL DEFAULT 'promised' CHECK (state IN ('promised', 'live', 'deleted')),
    due       timestamptz NOT NULL
);
CREATE INDEX objects_due ON objects (due);
CREATE INDEX objects_task ON objects (task_id) WHERE kind <> 'chunk';

-- A chunk counts as present only for the scope that wrote it.
CREATE TABLE chunks (
    scope          uuid  NOT NULL,
    content_sha256 bytea NOT NULL,
    object_id      uuid  NOT NULL UNIQUE REFERENCES objects,
    PRIMARY KEY (scope, content_sha256)
);

-- A chunk lives at least as long as every archive that names it: a commit moves the chunk's `due`.
CREATE TABLE archives (
    archive_id uuid        PRIMARY KEY,
    scope      uuid        NOT NULL,
    -- Digests of 32 bytes, one after another.
    chunks     bytea       NOT NULL,
    bytes      bigint      NOT NULL,
    due        timestamptz NOT NULL
);
CREATE INDEX archives_due ON archives (due);

CREATE TABLE caches (
    scope      uuid        NOT NULL,
    key        text        COLLATE "C" NOT NULL,
    archive_id uuid        NOT NULL,
    job_id     uuid        NOT NULL,
    job_number bigint      NOT NULL,
    paths      text[]      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due        timestamptz NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE INDEX caches_due ON caches (due);

CREATE TABLE layers (
    workspace_id uuid        NOT NULL,
    job_id       uuid        NOT NULL,
    index        integer     NOT NULL,
    step         integer     NOT NULL,
    job_name     text        NOT NULL,
    archive_id   uuid        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    due          timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, job_id, index, step)
);
CREATE INDEX layers_due ON layers (due);

CREATE TABLE artifacts (
    job_id    uuid    NOT NULL,
    index     integer NOT NULL,
    path      text    COLLATE "C" NOT NULL,
    object_id uuid    NOT NULL UNIQUE REFERENCES objects,
    size      bigint  NOT NULL,
    sha256    bytea   NOT NULL,
    PRIMARY KEY (job_id, index, path)
);
