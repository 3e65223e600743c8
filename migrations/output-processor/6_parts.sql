-- Of an artifact that comes in parts: the store's name of the upload, and the SHA-256 of each part, of 32 bytes, one after another.
ALTER TABLE objects
    ADD COLUMN upload text,
    ADD COLUMN parts  bytea,
    ADD CONSTRAINT objects_parts CHECK ((upload IS NULL) = (parts IS NULL));
