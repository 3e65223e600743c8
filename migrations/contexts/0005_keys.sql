-- SSH keys of projects. The private half is ciphertext of the secrets port.
CREATE TABLE ssh_keys (
    id          uuid PRIMARY KEY,
    project_id  uuid NOT NULL,
    purpose     text NOT NULL CHECK (purpose IN ('checkout', 'additional')),
    kind        text NOT NULL,
    -- Empty: for any host.
    hostname    text NOT NULL,
    public_key  text NOT NULL,
    md5         text NOT NULL,
    sha256      text NOT NULL,
    sealed      bytea NOT NULL,
    key_version bigint NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, purpose, hostname, sha256)
);
CREATE INDEX ssh_keys_by_key ON ssh_keys (key_version);

-- Keys that sign OIDC tokens. The newest whose time has come signs; all that lie here are published.
CREATE TABLE oidc_keys (
    id          uuid PRIMARY KEY,
    public_jwk  jsonb NOT NULL,
    sealed      bytea NOT NULL,
    key_version bigint NOT NULL,
    signs_from  timestamptz NOT NULL UNIQUE
);

-- Which keys a job asks for; NULL: none, empty: all of the project.
ALTER TABLE jobs ADD COLUMN ssh_keys text[];
ALTER TABLE jobs ADD COLUMN checkout_key boolean NOT NULL DEFAULT false;
-- What its OIDC tokens say of it beside that.
ALTER TABLE jobs ADD COLUMN claims jsonb NOT NULL DEFAULT '{}';
