-- SSH keys of people, to enter jobs with (execution §26): public halves alone.
CREATE TABLE user_keys (
    user_id    uuid NOT NULL REFERENCES users,
    -- `SHA256:…`, as OpenSSH prints it.
    sha256     text NOT NULL,
    public_key text NOT NULL,
    label      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, sha256)
);
