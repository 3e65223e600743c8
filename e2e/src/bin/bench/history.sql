-- Copies of one pipeline, from number :from to :to, through every table that it has rows in: events, state, views and
-- records. All its ids begin with the same eight digits, which become the number of the copy; numbers count on, and
-- times lie a second apart in the past, so that the newest copy is the oldest.

-- Events keep the transaction of the one that they copy: they lie behind every reader, and nobody acts on them.

SET synchronous_commit = off;
SET jit = off;

CREATE FUNCTION pg_temp.copy_rows(of_table regclass, condition text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    columns text;
    changed text;
BEGIN
    SELECT string_agg(quote_ident(attname), ', '),
           string_agg(CASE
               WHEN atttypid = 'timestamptz'::regtype THEN format('r.%I - n * interval ''1 second''', attname)
               WHEN attname IN ('number', 'pipeline_number') THEN format('r.%I + n', attname)
               ELSE format('r.%I', attname) END, ', ')
      INTO columns, changed
      FROM pg_attribute
     WHERE attrelid = of_table AND attnum > 0 AND NOT attisdropped AND attidentity = '' AND attgenerated = '';
    EXECUTE format(
        'INSERT INTO %1$s (%2$s) SELECT %3$s FROM generate_series(:from, :to) n, (SELECT * FROM %1$s WHERE %4$s) t, '
        'LATERAL jsonb_populate_record(NULL::%1$s, replace(to_jsonb(t)::text, '':prefix-'', lpad(to_hex(n), 8, ''0'') || ''-'')::jsonb) r', of_table, columns, changed, condition);
END $$;

CREATE TEMP TABLE w AS SELECT id FROM conductor.workflows WHERE pipeline_id = ':pipeline';
CREATE TEMP TABLE j AS SELECT id FROM conductor.jobs WHERE workflow_id IN (SELECT id FROM w);
CREATE TEMP TABLE k AS SELECT task_id AS id FROM dispatcher.tasks WHERE job_id IN (SELECT id FROM j);

BEGIN;
SELECT pg_temp.copy_rows('pipelines.events', $$correlation_id = ':pipeline'$$);
SELECT pg_temp.copy_rows('pipelines.pipelines', $$id = ':pipeline'$$);
SELECT pg_temp.copy_rows('conductor.events', $$correlation_id = ':pipeline'$$);
SELECT pg_temp.copy_rows('conductor.workflows', 'id IN (SELECT id FROM w)');
SELECT pg_temp.copy_rows('conductor.jobs', 'workflow_id IN (SELECT id FROM w)');
SELECT pg_temp.copy_rows('dispatcher.events', $$correlation_id = ':pipeline'$$);
SELECT pg_temp.copy_rows('dispatcher.runs', 'job_id IN (SELECT id FROM j)');
SELECT pg_temp.copy_rows('dispatcher.tasks', 'job_id IN (SELECT id FROM j)');
SELECT pg_temp.copy_rows('scheduler.placements', 'job_id IN (SELECT id FROM j)');
SELECT pg_temp.copy_rows('output_processor.events', 'aggregate_id IN (SELECT id FROM k)');
SELECT pg_temp.copy_rows('output_processor.tasks', 'task_id IN (SELECT id FROM k)');
SELECT pg_temp.copy_rows('output_processor.fences', 'task_id IN (SELECT id FROM k)');
SELECT pg_temp.copy_rows('projector.pipelines', $$id = ':pipeline'$$);
SELECT pg_temp.copy_rows('projector.workflows', 'id IN (SELECT id FROM w)');
SELECT pg_temp.copy_rows('projector.jobs', 'id IN (SELECT id FROM j)');
SELECT pg_temp.copy_rows('projector.tasks', 'id IN (SELECT id FROM k)');
SELECT pg_temp.copy_rows('projector.steps', 'job_id IN (SELECT id FROM j)');
SELECT pg_temp.copy_rows('records.documents', 'group_id IN (SELECT id FROM j) OR group_id IN (SELECT id FROM k) OR id IN (SELECT id FROM k)');
-- What comes next counts on from here.
UPDATE pipelines.counters SET last = last + :to - :from + 1
 WHERE project_id = (SELECT project_id FROM pipelines.pipelines WHERE id = ':pipeline');
UPDATE conductor.project_counters SET jobs = jobs + :to - :from + 1
 WHERE project_id = (SELECT project_id FROM conductor.workflows WHERE pipeline_id = ':pipeline' LIMIT 1);
COMMIT;
