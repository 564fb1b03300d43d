-- The logs. What is the log (chunks, tiles, pins, checkpoints, aside bytes,
-- idempotency keys) is only ever inserted; what is derived from it or speaks
-- of who works on it (head, streams, workers) may change.

-- One row a log: how far it is, its tree's edge, and who may extend it.
CREATE TABLE log_head (
    log_id       int PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    -- The Kafka topic's own id (16 bytes), so that a topic made again under the
    -- same name is never taken for the old one. Empty for an Append log.
    topic_id     bytea NOT NULL DEFAULT '',
    -- Fencing: every take-over raises the epoch; a batch of an older one fails.
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text NOT NULL DEFAULT '',
    lease_until  timestamptz NOT NULL DEFAULT '-infinity',
    next_offset  bigint NOT NULL DEFAULT 0,
    size         bigint NOT NULL DEFAULT 0,
    root         bytea NOT NULL DEFAULT sha256(''),
    frontier     bytea NOT NULL DEFAULT '',
    -- The last pin: size of the control log known when the last entries came.
    control_size bigint NOT NULL DEFAULT 0,
    accepted     bigint NOT NULL DEFAULT 0,
    duplicate    bigint NOT NULL DEFAULT 0,
    conflict     bigint NOT NULL DEFAULT 0,
    rejected     bigint NOT NULL DEFAULT 0,
    -- Why its owner stopped (topic recreated, log truncated, ...); empty: it runs.
    halted       text NOT NULL DEFAULT '',
    CHECK (size >= 0 AND next_offset >= 0),
    CHECK (accepted + duplicate + conflict + rejected = size)
) WITH (fillfactor = 50);

-- Leaf bytes. A row holds consecutive leaves of one entry bundle (256 leaves)
-- in the bundle's own encoding: u16 length and bytes, each. Under load a row is
-- a whole bundle, when idle a single leaf; rows of one bundle read one after
-- the other are the bundle.
CREATE TABLE log_chunk (
    log_id         int NOT NULL,
    first_position bigint NOT NULL,
    entries        smallint NOT NULL CHECK (entries BETWEEN 1 AND 256),
    leaves         bytea NOT NULL,
    committed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, first_position),
    CHECK (first_position >= 0 AND first_position % 256 + entries <= 256)
) PARTITION BY LIST (log_id);

-- Not compressed: the server's default method costs more time than all the rest
-- of a batch, and a faster one is not in every build of the server.
ALTER TABLE log_chunk ALTER COLUMN leaves SET STORAGE EXTERNAL;

-- Full tiles (C2SP tlog-tiles): 256 hashes of 32 bytes.
CREATE TABLE log_tile (
    log_id     int NOT NULL,
    level      smallint NOT NULL,
    tile_index bigint NOT NULL,
    hashes     bytea NOT NULL CHECK (length(hashes) = 8192),
    PRIMARY KEY (log_id, level, tile_index)
) PARTITION BY LIST (log_id);
ALTER TABLE log_tile ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- From a position on, the control log's size that was known.
CREATE TABLE log_pin (
    log_id        int NOT NULL,
    from_position bigint NOT NULL,
    control_size  bigint NOT NULL,
    PRIMARY KEY (log_id, from_position)
);

-- Signed checkpoints, as the signer wrote them.
CREATE TABLE checkpoint (
    log_id    int NOT NULL,
    size      bigint NOT NULL,
    root      bytea NOT NULL CHECK (length(root) = 32),
    note      bytea NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, size)
);

-- Bytes of records too large for a leaf.
CREATE TABLE log_aside (
    log_id   int NOT NULL,
    position bigint NOT NULL,
    value    bytea NOT NULL,
    PRIMARY KEY (log_id, position)
);

-- What an idempotency key of Append stands for.
CREATE TABLE append_key (
    log_id          int NOT NULL,
    idempotency_key text NOT NULL,
    position        bigint NOT NULL,
    payload_digest  bytea NOT NULL,
    PRIMARY KEY (log_id, idempotency_key)
);

-- Conflicts and rejected records, for those who must look at them.
CREATE TABLE log_exception (
    log_id      int NOT NULL,
    position    bigint NOT NULL,
    disposition smallint NOT NULL,
    reason      smallint NOT NULL,
    noted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_id, position)
);

-- Sealed runs of the identities accepted at positions [start, end): fingerprints
-- in order (u64, little-endian) and the position of each (i64, little-endian).
-- Derived from the log.
CREATE TABLE identity_run (
    log_id         int NOT NULL,
    start_position bigint NOT NULL,
    end_position   bigint NOT NULL,
    fingerprints   bytea NOT NULL,
    positions      bytea NOT NULL,
    PRIMARY KEY (log_id, start_position)
);
ALTER TABLE identity_run ALTER COLUMN fingerprints SET STORAGE EXTERNAL;
ALTER TABLE identity_run ALTER COLUMN positions SET STORAGE EXTERNAL;

-- Producers' streams: what came and what is missing. Derived from the log.
CREATE TABLE producer_stream (
    log_id     int NOT NULL,
    stream_id  text NOT NULL,
    next_seq   bigint NOT NULL,
    -- Missing ranges as first, end, first, end, ...
    missing    bigint[] NOT NULL DEFAULT '{}',
    closed_seq bigint,
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Since when a range has been missing without a break; null: none is.
    gap_since  timestamptz,
    PRIMARY KEY (log_id, stream_id)
);

-- Workers that live, so that each knows its fair share of the logs.
CREATE TABLE worker (
    worker_id   text PRIMARY KEY,
    lease_until timestamptz NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only: % on %.% is refused',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation',
              HINT = 'Write a correcting record through the log''s own door instead.';
END $$;

-- ENABLE ALWAYS: also in a session that calls itself a replica.
CREATE PROCEDURE guard(target regclass) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER refuse_rows BEFORE UPDATE OR DELETE ON %s'
        ' FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change()', target);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_rows', target);
    EXECUTE format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', target);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_truncate', target);
END $$;

CALL guard('ledger.log_chunk');
CALL guard('ledger.log_tile');
CALL guard('ledger.log_pin');
CALL guard('ledger.checkpoint');
CALL guard('ledger.log_aside');
CALL guard('ledger.append_key');
CALL guard('ledger.log_exception');

-- Makes a log when it is not there and gives its number. The service's role owns
-- no table, so it asks through this function; only well-known names are made.
CREATE FUNCTION open_log(wanted text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    found_id int;
    part text;
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
    FOREACH part IN ARRAY ARRAY['log_chunk', 'log_tile'] LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES IN (%s)',
            part || '_' || found_id, part, found_id);
        -- Row triggers are cloned from the parent, statement triggers are not.
        EXECUTE format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', part || '_' || found_id);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_truncate',
            part || '_' || found_id);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_rows',
            part || '_' || found_id);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO tollbook_ledger', part || '_' || found_id);
    END LOOP;
    INSERT INTO log_head (log_id, name) VALUES (found_id, wanted);
    RETURN found_id;
END $$;
REVOKE ALL ON FUNCTION open_log(text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE guard(regclass) FROM PUBLIC;

GRANT SELECT, INSERT ON log_chunk, log_tile, log_pin, checkpoint, log_aside, append_key,
    log_exception, identity_run TO tollbook_ledger;
GRANT SELECT, UPDATE ON log_head TO tollbook_ledger;
GRANT SELECT, INSERT, UPDATE ON producer_stream TO tollbook_ledger;
GRANT SELECT, INSERT, UPDATE, DELETE ON worker TO tollbook_ledger;
GRANT EXECUTE ON FUNCTION open_log(text) TO tollbook_ledger;

SELECT open_log('control');
SELECT open_log('cuts');
