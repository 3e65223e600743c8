-- Journals that are open, and where their processes are reached by each other. A journal keeps its id when another process
-- opens it.
CREATE TABLE journals (
    id     uuid        PRIMARY KEY,
    url    text        NOT NULL,
    opened timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Whose journal holds a task: from its first call until its record is complete. Only where several processes may serve.
CREATE TABLE owners (
    task_id uuid PRIMARY KEY,
    journal uuid NOT NULL
);
CREATE INDEX owners_journal ON owners (journal);
