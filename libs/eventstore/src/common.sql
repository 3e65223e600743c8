-- Tables that every service has in its own schema. Run with search_path = that schema.

-- The published log. A position is the pair (xid, seq): see `tail.rs`.
CREATE TABLE events (
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq            bigint      GENERATED ALWAYS AS IDENTITY,
    id             uuid        NOT NULL,
    kind           text        NOT NULL,
    schema         integer     NOT NULL,
    occurred_at    timestamptz NOT NULL,
    producer       text        NOT NULL,
    trace          text,
    aggregate_kind text        NOT NULL,
    aggregate_id   uuid        NOT NULL,
    version        bigint      NOT NULL CHECK (version > 0),
    org_id         uuid,
    project_id     uuid,
    causation_id   uuid,
    correlation_id uuid,
    actor          json        NOT NULL,
    body           json        NOT NULL,
    personal       json,
    PRIMARY KEY (xid, seq),
    CONSTRAINT events_version UNIQUE (aggregate_kind, aggregate_id, version)
);

-- Events are history: only the personal part may be erased.
CREATE FUNCTION events_are_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.personal IS NULL
       AND (NEW.xid, NEW.seq, NEW.id, NEW.kind, NEW.schema, NEW.occurred_at, NEW.aggregate_kind, NEW.aggregate_id, NEW.version)
         = (OLD.xid, OLD.seq, OLD.id, OLD.kind, OLD.schema, OLD.occurred_at, OLD.aggregate_kind, OLD.aggregate_id, OLD.version)
       AND NEW.body::text = OLD.body::text AND NEW.actor::text = OLD.actor::text THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'events are never changed' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER events_are_history BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION events_are_history();

-- Audit of what changes no aggregate: refusals, logins, downloads, deliveries of secrets, operators' acts.
CREATE TABLE acts (
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq            bigint      GENERATED ALWAYS AS IDENTITY,
    id             uuid        NOT NULL,
    kind           text        NOT NULL,
    occurred_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    trace          text,
    org_id         uuid,
    subject_kind   text,
    subject_id     uuid,
    causation_id   uuid,
    correlation_id uuid,
    actor          json        NOT NULL,
    detail         json        NOT NULL,
    PRIMARY KEY (xid, seq)
);

-- Recorded answers (R-5).
CREATE TABLE idempotency (
    actor    text        NOT NULL,
    key      text        NOT NULL,
    digest   text        NOT NULL,
    answer   json        NOT NULL,
    recorded timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (actor, key)
);
CREATE INDEX idempotency_recorded ON idempotency (recorded);

-- How far a group has come in a source. `revision` rises with each change, so that of two processes that
-- handle the same lane one notices; `ops` rises when an operator replays or discards.
CREATE TABLE cursors (
    group_name text        NOT NULL,
    source     text        NOT NULL,
    lane       integer     NOT NULL,
    lanes      integer     NOT NULL,
    xid        xid8        NOT NULL DEFAULT '0',
    seq        bigint      NOT NULL DEFAULT 0,
    revision   bigint      NOT NULL DEFAULT 0,
    ops        bigint      NOT NULL DEFAULT 0,
    updated    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_name, source, lanes, lane)
) WITH (fillfactor = 50);

-- Messages that failed (due is set) and those of the same aggregate that wait behind them (due is null).
CREATE TABLE parked (
    group_name     text        NOT NULL,
    source         text        NOT NULL,
    message_id     uuid        NOT NULL,
    aggregate_kind text        NOT NULL,
    aggregate_id   uuid        NOT NULL,
    version        bigint      NOT NULL,
    envelope       json        NOT NULL,
    attempt        integer     NOT NULL,
    due            timestamptz,
    error          text        NOT NULL,
    first_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    replayed_by    json,
    PRIMARY KEY (group_name, source, message_id)
);
CREATE INDEX parked_aggregate ON parked (group_name, source, aggregate_kind, aggregate_id, version);
CREATE INDEX parked_due ON parked (group_name, source, due) WHERE due IS NOT NULL;

-- Messages given up; later ones of the same aggregate stay parked until it is replayed or discarded.
CREATE TABLE dead_letters (
    group_name     text        NOT NULL,
    source         text        NOT NULL,
    message_id     uuid        NOT NULL,
    kind           text        NOT NULL,
    aggregate_kind text        NOT NULL,
    aggregate_id   uuid        NOT NULL,
    version        bigint      NOT NULL,
    envelope       json        NOT NULL,
    reason         text        NOT NULL,
    error          text        NOT NULL,
    attempts       integer     NOT NULL,
    first_at       timestamptz NOT NULL,
    died_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_name, source, message_id)
);

-- Who acts for a role (reliability §7).
CREATE TABLE leaders (
    role     text        PRIMARY KEY,
    holder   uuid        NOT NULL,
    epoch    bigint      NOT NULL,
    deadline timestamptz NOT NULL
);
