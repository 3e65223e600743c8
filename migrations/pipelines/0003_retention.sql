-- Pipelines that are past their retention are gone; their numbers are not given again.
CREATE TABLE expired (
    id         uuid PRIMARY KEY,
    project_id uuid NOT NULL,
    number     bigint NOT NULL,
    expired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (project_id, number)
);
CREATE INDEX pipelines_by_age ON pipelines (created_at, id);

-- A delivery keeps its decision (R-1, R-2), also when its pipeline is gone.
ALTER TABLE decisions DROP CONSTRAINT decisions_pipeline_id_fkey;

-- Only retention deletes, and says so (R-9).
CREATE TRIGGER kept BEFORE DELETE ON pipelines
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION refuse_terminal();
