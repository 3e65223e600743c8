-- Organisations, users, tokens and projects as they are now. History is in `events`.

CREATE TABLE orgs (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    id         uuid PRIMARY KEY,
    login      text NOT NULL UNIQUE,
    admin      boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Only the SHA-256 of a token is kept: tokens are long random strings, so a fast hash is enough.
CREATE TABLE tokens (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users,
    label      text NOT NULL,
    sha256     bytea NOT NULL CHECK (octet_length(sha256) = 32),
    -- The token of the start-up file, of which there is one.
    bootstrap  boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE UNIQUE INDEX tokens_live ON tokens (sha256) WHERE revoked_at IS NULL;
CREATE UNIQUE INDEX tokens_bootstrap ON tokens (bootstrap) WHERE bootstrap AND revoked_at IS NULL;
CREATE INDEX tokens_of_user ON tokens (user_id, id);

CREATE TABLE projects (
    id             uuid PRIMARY KEY,
    org_id         uuid NOT NULL REFERENCES orgs,
    name           text NOT NULL,
    default_branch text NOT NULL DEFAULT 'main',
    created_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (org_id, name)
);

-- A revoked token stays revoked (R-9).
CREATE FUNCTION refuse_terminal_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'token % is revoked: it does not change any more', OLD.id USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER terminal BEFORE UPDATE ON tokens
    FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL) EXECUTE FUNCTION refuse_terminal_token();
