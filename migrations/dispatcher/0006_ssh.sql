-- Whether the steps of a task had ended when it was stopped: it stayed for SSH sessions (execution §26).
ALTER TABLE tasks ADD COLUMN settled boolean NOT NULL DEFAULT false;
