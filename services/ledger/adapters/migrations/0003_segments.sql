-- A log's leaves in segments: partitions by range of positions, the oldest of
-- which are sealed into files and then detached. What was sealed, with its
-- digest and its roots, is only ever inserted.

ALTER TABLE log_head ADD COLUMN segment_entries bigint NOT NULL DEFAULT 1048576
    CHECK (segment_entries > 0 AND segment_entries % 256 = 0);
-- Positions below this have a segment to go to.
ALTER TABLE log_head ADD COLUMN opened_to bigint NOT NULL DEFAULT 0;

-- A segment whose leaves stand in a file, and what proves them.
CREATE TABLE log_segment (
    log_id         int NOT NULL,
    start_position bigint NOT NULL,
    end_position   bigint NOT NULL,
    -- Below the root of the archive.
    file           text NOT NULL,
    file_bytes     bigint NOT NULL,
    sha256         bytea NOT NULL CHECK (length(sha256) = 32),
    -- Roots of the trees of the first start_position and end_position leaves.
    start_root     bytea NOT NULL CHECK (length(start_root) = 32),
    end_root       bytea NOT NULL CHECK (length(end_root) = 32),
    sealed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, start_position),
    CHECK (start_position < end_position AND start_position % 256 = 0 AND end_position % 256 = 0)
);

-- Sealed segments whose rows were given up.
CREATE TABLE log_detached (
    log_id         int NOT NULL,
    start_position bigint NOT NULL,
    detached_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, start_position),
    FOREIGN KEY (log_id, start_position) REFERENCES log_segment
);

CALL guard('ledger.log_segment');
CALL guard('ledger.log_detached');
GRANT SELECT ON log_segment, log_detached TO tollbook_ledger;

-- What every table with leaves or tiles of one log must have. Row triggers are
-- cloned from the parent, but not that they fire always; statement triggers are
-- not cloned at all.
CREATE PROCEDURE guard_part(part text) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER refuse_truncate BEFORE TRUNCATE ON ledger.%I'
        ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', part);
    EXECUTE format('ALTER TABLE ledger.%I ENABLE ALWAYS TRIGGER refuse_truncate', part);
    EXECUTE format('ALTER TABLE ledger.%I ENABLE ALWAYS TRIGGER refuse_rows', part);
    EXECUTE format('REVOKE ALL ON ledger.%I FROM PUBLIC', part);
    EXECUTE format('GRANT SELECT, INSERT ON ledger.%I TO tollbook_ledger', part);
END $$;
REVOKE ALL ON PROCEDURE guard_part(text) FROM PUBLIC;

-- Makes segments until positions up to `wanted_end`, and a segment beyond, have
-- one; gives the position up to which they reach. A new segment is attached,
-- not made in place: that waits for no reader and no writer.
CREATE FUNCTION open_segments(wanted_log int, wanted_end bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    reached bigint;
    step bigint;
    part text;
BEGIN
    PERFORM pg_advisory_xact_lock(x'736567'::int, wanted_log);
    SELECT opened_to, segment_entries INTO reached, step FROM log_head WHERE log_id = wanted_log;
    -- Not further than the log can need: the role may ask for any position.
    IF wanted_end > (SELECT size FROM log_head WHERE log_id = wanted_log) + 16777216 THEN
        RAISE EXCEPTION 'log % is not near position %', wanted_log, wanted_end
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WHILE reached < wanted_end + step LOOP
        part := format('log_chunk_%s_%s', wanted_log, reached);
        EXECUTE format('CREATE TABLE %I (LIKE log_chunk INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
            ' INCLUDING STORAGE)', part);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
            'log_chunk_' || wanted_log, part, reached, reached + step);
        CALL guard_part(part);
        reached := reached + step;
        UPDATE log_head SET opened_to = reached WHERE log_id = wanted_log;
    END LOOP;
    RETURN reached;
END $$;
REVOKE ALL ON FUNCTION open_segments(int, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_segments(int, bigint) TO tollbook_ledger;

-- As in 0001, but with the leaves in segments.
CREATE OR REPLACE FUNCTION open_log(wanted text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    found_id int;
BEGIN
    SELECT log_id INTO found_id FROM log_head WHERE name = wanted;
    IF found_id IS NOT NULL THEN
        RETURN found_id;
    END IF;
    IF wanted = 'control' THEN
        found_id := 1;
    ELSIF wanted = 'cuts' THEN
        found_id := 2;
    ELSIF wanted ~ '^usage-(0|[1-9][0-9]{0,4})$' THEN
        found_id := 100 + substring(wanted FROM 7)::int;
    ELSE
        RAISE EXCEPTION 'no log may be named %', quote_literal(wanted)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(x'6c6f67'::int, found_id);
    IF EXISTS (SELECT FROM log_head WHERE log_id = found_id) THEN
        RETURN found_id;
    END IF;
    EXECUTE format('CREATE TABLE %I PARTITION OF log_chunk FOR VALUES IN (%s)'
        ' PARTITION BY RANGE (first_position)', 'log_chunk_' || found_id, found_id);
    CALL guard_part('log_chunk_' || found_id);
    EXECUTE format('CREATE TABLE %I PARTITION OF log_tile FOR VALUES IN (%s)',
        'log_tile_' || found_id, found_id);
    CALL guard_part('log_tile_' || found_id);
    INSERT INTO log_head (log_id, name) VALUES (found_id, wanted);
    PERFORM open_segments(found_id, 0);
    RETURN found_id;
END $$;

-- Logs that are there: what they hold becomes their first segment, however long.
DO $$
DECLARE
    head record;
    part text;
    step bigint;
    reached bigint;
BEGIN
    FOR head IN SELECT log_id, size, segment_entries FROM log_head ORDER BY log_id LOOP
        part := format('log_chunk_%s_0', head.log_id);
        step := head.segment_entries;
        reached := (head.size / step + 1) * step;
        EXECUTE format('ALTER TABLE log_chunk DETACH PARTITION %I', 'log_chunk_' || head.log_id);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', 'log_chunk_' || head.log_id, part);
        EXECUTE format('CREATE TABLE %I PARTITION OF log_chunk FOR VALUES IN (%s)'
            ' PARTITION BY RANGE (first_position)', 'log_chunk_' || head.log_id, head.log_id);
        CALL guard_part('log_chunk_' || head.log_id);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (0) TO (%s)',
            'log_chunk_' || head.log_id, part, reached);
        CALL guard_part(part);
        UPDATE log_head SET opened_to = reached WHERE log_id = head.log_id;
        PERFORM open_segments(head.log_id, head.size);
    END LOOP;
END $$;
