-- Jobs of a setup configuration are handed the key that continues their pipeline.
ALTER TABLE jobs ADD COLUMN continues uuid;
