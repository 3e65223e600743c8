-- Pipelines, their numbers, and what became of each delivery.

-- Last number per project; the row's lock makes numbers dense, in commit order (R-6).
CREATE TABLE counters (
    project_id uuid PRIMARY KEY,
    last       bigint NOT NULL CHECK (last > 0)
);

CREATE TABLE pipelines (
    id          uuid PRIMARY KEY,
    project_id  uuid NOT NULL,
    number      bigint NOT NULL,
    state       text NOT NULL CHECK (state IN ('created', 'errored')),
    project     jsonb NOT NULL,
    trigger     jsonb NOT NULL,
    vcs         jsonb NOT NULL,
    errors      jsonb NOT NULL,
    -- Written by a person.
    subject     text,
    source      text NOT NULL,
    compiled    text NOT NULL,
    plan_digest text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, number)
);

CREATE TABLE decisions (
    delivery_id uuid PRIMARY KEY,
    pipeline_id uuid REFERENCES pipelines,
    reason      text,
    decided_at  timestamptz NOT NULL DEFAULT now(),
    CHECK ((pipeline_id IS NULL) <> (reason IS NULL))
);

-- Both are final from the start (R-9); erasing a person's text stays possible.
CREATE FUNCTION refuse_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % is final', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER terminal BEFORE UPDATE ON decisions FOR EACH ROW EXECUTE FUNCTION refuse_terminal();
CREATE TRIGGER terminal BEFORE UPDATE ON pipelines
    FOR EACH ROW WHEN (
        (OLD.id, OLD.project_id, OLD.number, OLD.state, OLD.project, OLD.trigger, OLD.vcs, OLD.errors, OLD.source,
         OLD.compiled, OLD.plan_digest, OLD.created_at)
        IS DISTINCT FROM
        (NEW.id, NEW.project_id, NEW.number, NEW.state, NEW.project, NEW.trigger, NEW.vcs, NEW.errors, NEW.source,
         NEW.compiled, NEW.plan_digest, NEW.created_at)
        OR NEW.subject IS NOT NULL AND NEW.subject IS DISTINCT FROM OLD.subject)
    EXECUTE FUNCTION refuse_terminal();
