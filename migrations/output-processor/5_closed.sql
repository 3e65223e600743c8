-- The sweep looks for tasks that ended long ago.
CREATE INDEX fences_closed ON fences (closed_at);
