-- Settings of a project as people change them; what is absent has its default.
ALTER TABLE projects ADD COLUMN settings jsonb NOT NULL DEFAULT '{}';
