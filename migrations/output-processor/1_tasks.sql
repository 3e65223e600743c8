-- Fences: nothing of an epoch up to closed_to is accepted any more. The row is written when the record of those
-- epochs is complete in the blob store; until then the journal holds the close.
CREATE TABLE fences (
    task_id   uuid        PRIMARY KEY,
    closed_to bigint      NOT NULL,
    closed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION fences_never_open() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.closed_to < OLD.closed_to THEN
        RAISE EXCEPTION 'a closed epoch stays closed' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fences_never_open BEFORE UPDATE ON fences FOR EACH ROW EXECUTE FUNCTION fences_never_open();

-- What the dispatcher said of a task: its reports do not carry their parallel index.
CREATE TABLE tasks (
    task_id uuid    PRIMARY KEY,
    job_id  uuid    NOT NULL,
    index   integer NOT NULL
);
