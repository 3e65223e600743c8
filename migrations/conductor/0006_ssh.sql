-- Of an instance whose jobs can be entered by SSH: who may, and with which public keys (execution §26).
ALTER TABLE workflows ADD COLUMN ssh jsonb;
