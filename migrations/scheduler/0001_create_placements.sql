-- An agent that was, is or will be started. The row is the intent; the agent's name makes acting on it repeatable.
CREATE TABLE placements (
    task_id uuid NOT NULL,
    epoch bigint NOT NULL,
    job_id uuid NOT NULL,
    -- wanted: to be started. started: the agent was started. ending: to be ended and forgotten. gone: forgotten.
    state text NOT NULL CHECK (state IN ('wanted', 'started', 'ending', 'gone')),
    attempts int NOT NULL DEFAULT 0,
    next_action_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    ending_at timestamptz,
    PRIMARY KEY (task_id, epoch),
    CHECK ((state IN ('wanted', 'ending')) = (next_action_at IS NOT NULL))
);
CREATE INDEX placements_due ON placements (next_action_at) WHERE next_action_at IS NOT NULL;
CREATE INDEX placements_started ON placements (task_id) WHERE state = 'started';

CREATE FUNCTION refuse_change_of_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a placement that is gone cannot change' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER placements_are_final BEFORE UPDATE ON placements
    FOR EACH ROW WHEN (OLD.state = 'gone') EXECUTE FUNCTION refuse_change_of_gone();
