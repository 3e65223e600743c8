-- Jobs of several tasks, as the conductor announced them: their tests are split by what is known of the job's name.
CREATE TABLE jobs (
    job_id     uuid        PRIMARY KEY,
    project_id uuid        NOT NULL,
    name       text        NOT NULL,
    branch     text,
    known_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX jobs_known ON jobs (known_at);

-- Uploads of reports. `state`: waiting to be read, read, or refused as a whole with `problems`.
CREATE TABLE reports (
    object_id  uuid        PRIMARY KEY,
    job_id     uuid        NOT NULL,
    index      integer     NOT NULL,
    project_id uuid        NOT NULL,
    job_name   text        NOT NULL,
    branch     text,
    revision   text        NOT NULL,
    blob       text        NOT NULL,
    at         timestamptz NOT NULL,
    state      text        NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'read', 'refused')),
    attempts   integer     NOT NULL DEFAULT 0,
    due        timestamptz NOT NULL DEFAULT clock_timestamp(),
    problems   text[]      NOT NULL DEFAULT '{}'
);
CREATE INDEX reports_job ON reports (job_id);
CREATE INDEX reports_waiting ON reports (due) WHERE state = 'waiting';
CREATE INDEX reports_history ON reports (project_id, job_name, at DESC) WHERE state = 'read';
CREATE INDEX reports_at ON reports (at);

CREATE TABLE tests (
    job_id    uuid             NOT NULL,
    index     integer          NOT NULL,
    seq       bigint           GENERATED ALWAYS AS IDENTITY,
    object_id uuid             NOT NULL REFERENCES reports ON DELETE CASCADE,
    classname text             NOT NULL,
    file      text             NOT NULL,
    name      text             NOT NULL,
    result    text             NOT NULL,
    run_time  double precision NOT NULL,
    message   text             NOT NULL,
    PRIMARY KEY (job_id, index, seq)
);
CREATE INDEX tests_object ON tests (object_id);

-- What a job's tasks were told: all of them the same, whatever becomes known meanwhile.
CREATE TABLE snapshots (
    job_id   uuid        PRIMARY KEY,
    timings  jsonb       NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX snapshots_taken ON snapshots (taken_at);
