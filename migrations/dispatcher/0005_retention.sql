-- Only retention deletes, and says so (R-9).
CREATE TRIGGER runs_kept BEFORE DELETE ON runs
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION refuse_change_of_finished();
CREATE TRIGGER tasks_kept BEFORE DELETE ON tasks
    FOR EACH ROW WHEN (coalesce(current_setting('gantry.retention', true), '') <> 'on')
    EXECUTE FUNCTION refuse_change_of_finished();
