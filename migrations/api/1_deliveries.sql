-- Inbound pushes. A row is written in the commit that appends `delivery.received`.

CREATE TABLE deliveries (
    id          uuid PRIMARY KEY,
    project_id  uuid NOT NULL,
    reference   text NOT NULL,
    before      text,
    revision    text NOT NULL,
    skip        boolean NOT NULL,
    pusher      uuid,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deliveries_by_ref ON deliveries (project_id, reference, received_at DESC);

-- Repositories that the embedded git server holds.
CREATE TABLE repositories (
    project_id uuid PRIMARY KEY,
    project    jsonb NOT NULL
);

-- What each ref was when its last change became a delivery. A push whose delivery could not be written
-- any more is found by comparing this with the repository.
CREATE TABLE refs (
    project_id uuid NOT NULL REFERENCES repositories,
    name       text NOT NULL,
    revision   text NOT NULL,
    PRIMARY KEY (project_id, name)
);
