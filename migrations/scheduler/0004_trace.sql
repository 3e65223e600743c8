-- The trace of the task: starting its agent is told of there.
ALTER TABLE placements ADD COLUMN trace text;
