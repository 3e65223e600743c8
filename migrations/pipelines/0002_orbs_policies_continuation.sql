-- The orb registry, config policies, and pipelines that one of their own jobs continues.

-- What a pipeline was compiled with, and its setup configuration once it has a second one.
ALTER TABLE pipelines
    DROP CONSTRAINT pipelines_state_check,
    ADD CONSTRAINT pipelines_state_check CHECK (state IN ('setup', 'created', 'errored')),
    -- Pipeline parameters that the trigger gave.
    ADD COLUMN parameters     jsonb NOT NULL DEFAULT '{}',
    -- Commit before a push: `pipeline.git.base_revision`.
    ADD COLUMN base_revision  text,
    ADD COLUMN setup_source   text,
    ADD COLUMN setup_compiled text,
    ADD COLUMN continued_at   timestamptz;

-- A pipeline in state `setup` changes once more, when it is continued; all others are final.
DROP TRIGGER terminal ON pipelines;
CREATE TRIGGER terminal BEFORE UPDATE ON pipelines
    FOR EACH ROW WHEN (
        (OLD.id, OLD.project_id, OLD.number, OLD.project, OLD.trigger, OLD.vcs, OLD.parameters, OLD.base_revision,
         OLD.created_at)
        IS DISTINCT FROM
        (NEW.id, NEW.project_id, NEW.number, NEW.project, NEW.trigger, NEW.vcs, NEW.parameters, NEW.base_revision,
         NEW.created_at)
        OR OLD.state <> 'setup' AND
        (OLD.state, OLD.errors, OLD.source, OLD.compiled, OLD.plan_digest, OLD.setup_source, OLD.setup_compiled,
         OLD.continued_at)
        IS DISTINCT FROM
        (NEW.state, NEW.errors, NEW.source, NEW.compiled, NEW.plan_digest, NEW.setup_source, NEW.setup_compiled,
         NEW.continued_at)
        OR NEW.subject IS NOT NULL AND NEW.subject IS DISTINCT FROM OLD.subject)
    EXECUTE FUNCTION refuse_terminal();

CREATE TABLE orb_namespaces (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    org_id     uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE orbs (
    id           uuid PRIMARY KEY,
    namespace_id uuid NOT NULL REFERENCES orb_namespaces ON DELETE CASCADE,
    name         text NOT NULL,
    is_private   boolean NOT NULL,
    listed       boolean NOT NULL DEFAULT true,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (namespace_id, name)
);

-- Sources by their SHA-256 (hex): what many versions share is stored once.
CREATE TABLE orb_sources (
    digest text PRIMARY KEY,
    source text NOT NULL
);

CREATE TABLE orb_versions (
    id         uuid PRIMARY KEY,
    orb_id     uuid NOT NULL REFERENCES orbs ON DELETE CASCADE,
    -- `1.2.3` or `dev:first`.
    version    text NOT NULL,
    -- Of a published version; null for a dev version.
    major      bigint,
    minor      bigint,
    patch      bigint,
    digest     text NOT NULL REFERENCES orb_sources,
    -- The orb's own references, frozen at publication: as written → exact.
    pins       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (orb_id, version),
    CHECK ((major IS NULL) = (version LIKE 'dev:%') AND (major IS NULL) = (minor IS NULL)
        AND (major IS NULL) = (patch IS NULL))
);
CREATE INDEX orb_versions_by_number ON orb_versions (orb_id, major DESC, minor DESC, patch DESC)
    WHERE major IS NOT NULL;

-- A published version never changes; it only goes with its whole orb.
CREATE TRIGGER terminal BEFORE UPDATE ON orb_versions
    FOR EACH ROW WHEN (OLD.major IS NOT NULL) EXECUTE FUNCTION refuse_terminal();

-- Every bundle that was pushed: a decision names the one that made it.
CREATE TABLE policy_bundles (
    id         uuid PRIMARY KEY,
    org_id     uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by uuid,
    -- Path → text, as pushed.
    files      jsonb NOT NULL,
    -- Policies by name: content, created_at, created_by.
    policies   jsonb NOT NULL
);
CREATE INDEX policy_bundles_by_org ON policy_bundles (org_id, created_at DESC, id DESC);

CREATE TABLE policy_settings (
    org_id  uuid PRIMARY KEY,
    enabled boolean NOT NULL
);

CREATE TABLE policy_decisions (
    id            uuid PRIMARY KEY,
    org_id        uuid NOT NULL,
    bundle_id     uuid REFERENCES policy_bundles,
    pipeline_id   uuid,
    project_id    uuid,
    build_number  bigint,
    branch        text,
    status        text NOT NULL CHECK (status IN ('PASS', 'SOFT_FAIL', 'HARD_FAIL', 'ERROR')),
    decision      jsonb NOT NULL,
    metadata      jsonb NOT NULL,
    time_taken_ms bigint NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX policy_decisions_by_org ON policy_decisions (org_id, created_at DESC, id DESC);
CREATE TRIGGER terminal BEFORE UPDATE ON policy_decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_terminal();
