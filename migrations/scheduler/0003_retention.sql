-- Placements go with their job when that is past its retention.
CREATE INDEX placements_of_job ON placements (job_id);
