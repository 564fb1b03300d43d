-- What readers and operators ask for: how far a partition reaches beyond its
-- log, and which streams have something missing.

-- The offset after the partition's last record, as the log's owner last saw it.
ALTER TABLE log_head ADD COLUMN end_offset bigint;
ALTER TABLE log_head ADD COLUMN end_offset_at timestamptz;

-- The streams with a gap are few among many.
CREATE INDEX producer_stream_gap ON producer_stream (gap_since) WHERE gap_since IS NOT NULL;
