-- What is kept of a job goes with it when its pipeline is past its retention.
CREATE INDEX tasks_of_job ON tasks (job_id);
CREATE INDEX layers_of_job ON layers (job_id);
