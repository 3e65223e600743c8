-- How long the job wants its caches kept, if not as long as the server keeps them.
ALTER TABLE jobs ADD COLUMN cache_days integer CHECK (cache_days > 0);
