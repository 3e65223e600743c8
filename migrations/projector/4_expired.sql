-- Pipelines that are past their retention: what other services said of them may still arrive, and shows nothing.
CREATE TABLE expired (
    id uuid PRIMARY KEY
);
