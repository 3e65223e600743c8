-- Who set a value last, and when a job last had it, to the hour.
ALTER TABLE variables
    ADD COLUMN updated_by   uuid,
    ADD COLUMN last_used_at timestamptz;
