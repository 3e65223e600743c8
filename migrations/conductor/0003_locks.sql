-- Jobs that hold the lock of a serial group for others, and those that give it back (execution §7).
ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check;
ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ('build', 'approval', 'no-op', 'lock', 'unlock'));
