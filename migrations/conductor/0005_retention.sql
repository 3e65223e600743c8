-- Workflows go with their pipeline when that is past its retention.
CREATE INDEX workflows_of_pipeline ON workflows (pipeline_id);
