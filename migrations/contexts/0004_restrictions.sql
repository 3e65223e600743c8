-- Who may use a context. All kinds that were ever restricted must hold; a kind whose last restriction was removed
-- holds for nobody, until the context is set unrestricted.
ALTER TABLE contexts ADD COLUMN restricted text[] NOT NULL DEFAULT '{}';
CREATE TABLE restrictions (
    id         uuid PRIMARY KEY,
    context_id uuid NOT NULL REFERENCES contexts ON DELETE CASCADE,
    kind       text NOT NULL CHECK (kind IN ('project', 'expression', 'group')),
    value      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (context_id, kind, value)
);

-- What expressions may ask about a job: pipeline values by name.
ALTER TABLE jobs ADD COLUMN facts jsonb NOT NULL DEFAULT '{}';
