-- Why compute has not placed a queued task, in words; NULL: nothing is known to keep it.
ALTER TABLE tasks ADD COLUMN placement text;
