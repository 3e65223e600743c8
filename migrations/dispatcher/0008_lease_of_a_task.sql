-- How long the lease of a task is, as its agent was told with the claim: both sides derive their deadlines from it (R-18).
ALTER TABLE tasks ADD COLUMN lease interval;
