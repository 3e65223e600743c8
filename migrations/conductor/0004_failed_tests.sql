-- The job of the instance before whose failed tests are all that this one runs (execution §9).
ALTER TABLE jobs ADD COLUMN failed_tests_of uuid;
