-- The trace in which the workflow began, and the span that it is below: whatever moves it later, what becomes of it belongs there.
ALTER TABLE workflows ADD COLUMN trace text;
