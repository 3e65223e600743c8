-- What the task asks of the machine (`compute::Demand`), and which start of the placement was given its token: where compute
-- can start one a second time by itself, the second gets none.
ALTER TABLE placements ADD COLUMN demand jsonb, ADD COLUMN instance text;
