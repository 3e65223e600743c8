-- Processes that run this service's groups; one that was not seen for 10 s is gone.
CREATE TABLE instances (
    id   uuid        PRIMARY KEY,
    seen timestamptz NOT NULL
);
