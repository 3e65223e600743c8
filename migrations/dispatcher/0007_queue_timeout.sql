-- A task in line may have an end of its own ([dispatcher] queue_timeout). What is there holds to the stricter rule that goes.
ALTER TABLE tasks
    DROP CONSTRAINT tasks_check2,
    ADD CONSTRAINT tasks_next_action
        CHECK (state = 'waiting' OR (state IN ('queued', 'leased')) = (next_action_at IS NOT NULL)) NOT VALID;
