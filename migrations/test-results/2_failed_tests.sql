-- The job whose failed tests are all that this one runs (execution §9).
ALTER TABLE jobs ADD COLUMN failed_tests_of uuid;
CREATE INDEX tests_failed ON tests (job_id) WHERE result IN ('failure', 'error');
