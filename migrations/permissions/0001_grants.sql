-- Who has which role where. The nil organisation stands for "everywhere", so that it can be part of the key.

CREATE TABLE grants (
    user_id    uuid NOT NULL,
    org_id     uuid NOT NULL,
    role       text NOT NULL CHECK (role IN ('admin', 'contributor', 'viewer')),
    granted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, org_id)
);

-- Users that this service has heard of: a check for anybody else waits a moment for the news.
CREATE TABLE users (
    user_id uuid PRIMARY KEY
);
