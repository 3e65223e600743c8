-- Histories that left the log (architecture §3): what of them lies where. A row without `sealed_at` is a plan: its blob may
-- be there or not, the events are still in the log, and the next sweep takes both away and begins anew.
CREATE TABLE event_archives (
    id         uuid        PRIMARY KEY,
    blob       text        NOT NULL UNIQUE,
    -- SHA-256 of the blob, hex, and how many bytes, events and aggregates it has.
    sha256     text        NOT NULL,
    size       bigint      NOT NULL,
    events     bigint      NOT NULL,
    aggregates bigint      NOT NULL,
    planned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sealed_at  timestamptz
);

-- The personal parts of an archived aggregate lie sealed under a key of its own: without its row nobody reads them again.
CREATE TABLE archive_keys (
    archive_id     uuid  NOT NULL REFERENCES event_archives ON DELETE CASCADE,
    aggregate_kind text  NOT NULL,
    aggregate_id   uuid  NOT NULL,
    key            bytea NOT NULL,
    PRIMARY KEY (archive_id, aggregate_kind, aggregate_id)
);

-- What another service said is past its retention, until this one has let it go.
CREATE TABLE expiring (
    id       uuid        PRIMARY KEY,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Only retention deletes, and says so (R-9).
CREATE FUNCTION events_are_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are deleted by retention only' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION events_are_kept();
