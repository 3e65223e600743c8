-- By what limits count, beside the organisation (R-22).
ALTER TABLE tasks ADD COLUMN project_id uuid;
ALTER TABLE tasks ADD COLUMN resource_class text NOT NULL DEFAULT '';
-- Tasks that ended are final and of no interest to a queue.
UPDATE tasks t SET project_id = r.project_id, resource_class = coalesce(r.ready #>> '{definition,resource_class}', '')
    FROM runs r WHERE r.job_id = t.job_id AND t.state <> 'finished';
-- The oldest of each owner, without reading those behind them.
DROP INDEX tasks_in_line;
CREATE INDEX tasks_in_line ON tasks (org_id, project_id, resource_class, position) WHERE state = 'waiting';

-- The trace that a run belongs to: what its agents say belongs to it too.
ALTER TABLE runs ADD COLUMN trace text;
