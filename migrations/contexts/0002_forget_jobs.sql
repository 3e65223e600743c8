-- What is kept of a job goes when the job has ended.
CREATE INDEX deliveries_of_job ON deliveries (job_id);
