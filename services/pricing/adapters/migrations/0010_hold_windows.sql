-- Accounts with spend limits are decided in the one statement of a batch too: which window an instant
-- falls in takes a zone's clock, which the caller has, and the caller tells the windows' edges.
-- And fewer statements: holds that end or grow are locked by one, and a hold and its sum are written by
-- one.
DROP FUNCTION decide_holds(
    int[], int[], text[], text[], text[], text[], text[], numeric[], bigint[], bigint[]
);

-- Takes one element a column for each ask; no hold comes twice. kind: 0 makes a hold or finds it,
-- 1 gives one that there is another end and amount, 2 gives one up.
--
-- One row an ask, `place` counting from 1. outcome: MADE, FOUND, GROWN, RELEASED, or why not:
-- GONE (there is no such hold), NO_ACCOUNT, CURRENCY, CHARGED (its event is), NO_CREDIT; or CLOSER:
-- the account has credit that ends or is for a project, or a spend limit that may be in the way,
-- which the caller looks at by itself; nothing is done then. free_pico is what may still be held
-- after it.
--
-- spans, zones, starts_us, ends_us: of the kinds of windows that the accounts' limits are in, as far
-- as the caller knows them, the one that the asks' events fall in, each kind once: all instants from
-- its start, which names it, to its end. A limit whose window is not told takes a closer look.
--
-- Decides as pricing/domain/holds.py does for an account without lots; a test keeps the two together.
CREATE FUNCTION decide_holds(
    shards int[], kinds int[], ids text[], accounts text[], projects text[], keys text[],
    currencies text[], amounts numeric[], event_times_us bigint[], ttls_us bigint[],
    spans text[], zones text[], starts_us bigint[], ends_us bigint[]
) RETURNS TABLE (
    place bigint, outcome text, project_id text, key_id text, amount_pico text,
    event_time_us bigint, expires_us bigint, free_pico text, currency text
)
LANGUAGE plpgsql
-- Its statements look up a few rows by their keys, whatever the tables' statistics say, and are
-- planned once a connection.
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    now_at timestamptz;
    now_us bigint;
    gone text[];
    growing text[];
    made bigint[] := '{}';
    grown bigint[] := '{}';
    mores numeric[] := '{}';
    account text := NULL;
    free numeric;
    -- By limit of the account, what is spent and held in its window.
    used numeric[];
    limits int;
    more numeric;
    freed numeric;
    ask record;
BEGIN
    -- Whoever has these rows is the one writer of their accounts' holds; in one order for all.
    PERFORM FROM hold_shard WHERE shard = ANY (shards) ORDER BY shard FOR UPDATE;
    now_at := clock_timestamp();
    now_us := (extract(epoch FROM now_at) * 1000000)::bigint;

    -- Nobody waits for a hold's row: one that is locked is being charged, and gone for us. Holds that
    -- are to end or to grow are ours from here on.
    SELECT array_agg(hold_id) FILTER (WHERE is_over), array_agg(hold_id) FILTER (WHERE NOT is_over)
    INTO gone, growing FROM (
        SELECT h.hold_id, a.kind = 2 OR h.expires_at <= now_at AS is_over
        FROM unnest(kinds, ids, accounts, amounts) AS a (kind, id, account_id, pico)
        JOIN hold h ON h.hold_id = a.id AND h.account_id = a.account_id
        WHERE a.kind <> 0 OR a.pico > h.amount_pico OR h.expires_at <= now_at
        FOR UPDATE OF h SKIP LOCKED) mine;

    -- First, since what is given up may be what another ask needs.
    IF gone IS NOT NULL THEN
        WITH ended AS (
            DELETE FROM hold WHERE hold_id = ANY (gone) RETURNING account_id, amount_pico
        )
        UPDATE account_reserved r SET amount_pico = r.amount_pico - e.amount_pico
        FROM (SELECT account_id, sum(amount_pico) AS amount_pico FROM ended GROUP BY 1) e
        WHERE r.account_id = e.account_id;
    END IF;

    -- One statement, so one snapshot: a charge and the end of its hold are both in it or neither.
    FOR ask IN
        WITH bound AS MATERIALIZED (
            SELECT l.account_id, array_agg(l.project_id) AS projects, array_agg(l.key_id) AS keys,
                array_agg(l.amount_pico) AS picos, array_agg(w.start_us) AS starts,
                array_agg(w.end_us) AS ends,
                array_agg(coalesce((SELECT s.amount_pico FROM limit_spent s
                    WHERE s.limit_id = l.limit_id AND s.window_start_us = w.start_us), 0)
                    + coalesce((SELECT sum(h.amount_pico) FROM hold h
                    WHERE h.account_id = l.account_id
                    AND l.project_id IN ('', h.project_id) AND l.key_id IN ('', h.key_id)
                    AND h.event_time_us >= w.start_us AND h.event_time_us < w.end_us), 0)) AS used
            FROM (SELECT DISTINCT account_id FROM unnest(kinds, accounts) AS a (kind, account_id)
                WHERE kind <> 2) d
            JOIN spend_limit l ON l.account_id = d.account_id
            LEFT JOIN unnest(spans, zones, starts_us, ends_us) AS w (span, zone, start_us, end_us)
                ON w.span = l.span AND w.zone = l.time_zone
            GROUP BY l.account_id
        )
        SELECT a.*, c.account_id AS known, c.currency AS own_currency,
            coalesce(b.amount_pico, 0) + c.credit_limit_pico
                - coalesce(r.amount_pico, 0) + coalesce(s.amount_pico, 0) AS free,
            o.projects AS limit_projects, o.keys AS limit_keys, o.picos AS limit_picos,
            o.starts AS limit_starts, o.ends AS limit_ends, o.used AS limit_used,
            EXISTS (
                SELECT FROM credit_grant g WHERE g.account_id = a.account_id
                AND g.expired_pico IS NULL
                AND (g.expires_us <> 9223372036854775807 OR g.project_id <> '')) AS closer,
            h.hold_id AS open_id, h.project_id AS open_project, h.key_id AS open_key,
            h.amount_pico AS open_pico, h.event_time_us AS open_event_us,
            (extract(epoch FROM h.expires_at) * 1000000)::bigint AS open_expires_us,
            a.kind = 0 AND EXISTS (
                SELECT FROM usage_event u WHERE u.identity = decode(a.id, 'hex')) AS charged
        FROM unnest(kinds, ids, accounts, projects, keys, currencies, amounts, event_times_us,
                ttls_us) WITH ORDINALITY
            AS a (kind, id, account_id, project, key, currency, pico, event_us, ttl_us, n)
        LEFT JOIN account c ON c.account_id = a.account_id
        LEFT JOIN balance b
            ON b.ledger_account = 'account:' || a.account_id AND b.currency = c.currency
        LEFT JOIN account_reserved r ON r.account_id = a.account_id
        LEFT JOIN account_settled s ON s.account_id = a.account_id
        LEFT JOIN hold h ON h.hold_id = a.id AND h.account_id = a.account_id
        LEFT JOIN bound o ON o.account_id = a.account_id
        WHERE a.kind <> 2
        ORDER BY a.account_id, a.n
    LOOP
        IF account IS DISTINCT FROM ask.account_id THEN
            account := ask.account_id;
            free := ask.free;
            used := ask.limit_used;
            limits := coalesce(cardinality(used), 0);
        END IF;
        place := ask.n;
        outcome := NULL;
        project_id := ask.project;
        key_id := ask.key;
        event_time_us := ask.event_us;
        expires_us := now_us + ask.ttl_us;
        more := ask.pico;
        amount_pico := ask.pico;
        currency := ask.own_currency;
        IF ask.known IS NULL THEN
            outcome := 'NO_ACCOUNT';
        ELSIF ask.currency <> '' AND ask.currency <> ask.own_currency THEN
            outcome := 'CURRENCY';
        ELSIF ask.closer THEN
            outcome := 'CLOSER';
        ELSIF ask.open_id IS NOT NULL THEN
            project_id := ask.open_project;
            key_id := ask.open_key;
            event_time_us := ask.open_event_us;
            more := greatest(0, ask.pico - ask.open_pico);
            amount_pico := ask.open_pico + more;
            IF ask.kind = 0 AND more = 0 THEN
                outcome := 'FOUND';
                expires_us := ask.open_expires_us;
            ELSIF growing IS NULL OR ask.open_id <> ALL (growing) THEN
                outcome := 'GONE';
            END IF;
        ELSIF ask.kind = 1 THEN
            outcome := 'GONE';
        ELSIF ask.charged THEN
            outcome := 'CHARGED';
        END IF;
        IF outcome IS NULL AND more > 0 AND limits > 0 THEN
            FOR i IN 1 .. limits LOOP
                IF (ask.limit_projects)[i] IN ('', project_id)
                    AND (ask.limit_keys)[i] IN ('', key_id)
                    AND ((ask.limit_starts)[i] <= event_time_us
                        AND event_time_us < (ask.limit_ends)[i]
                        AND used[i] + more <= (ask.limit_picos)[i]) IS NOT TRUE
                THEN
                    outcome := 'CLOSER';
                END IF;
            END LOOP;
        END IF;
        IF outcome IS NULL THEN
            IF more > 0 AND more > free THEN
                -- Nobody is refused for a hold whose time is over.
                WITH ended AS (
                    DELETE FROM hold WHERE hold_id = ANY (ARRAY(
                        SELECT h.hold_id FROM hold h
                        WHERE h.account_id = ask.account_id AND h.expires_at <= now_at
                        LIMIT 10000 FOR UPDATE SKIP LOCKED))
                    RETURNING amount_pico
                ), less AS (
                    UPDATE account_reserved r
                    SET amount_pico = r.amount_pico - (SELECT sum(amount_pico) FROM ended)
                    WHERE r.account_id = ask.account_id AND EXISTS (SELECT FROM ended)
                )
                SELECT sum(amount_pico) INTO freed FROM ended;
                free := free + coalesce(freed, 0);
            END IF;
            IF more > 0 AND more > free THEN
                outcome := 'NO_CREDIT';
                amount_pico := more;
            ELSE
                free := free - more;
                FOR i IN 1 .. limits LOOP
                    IF (ask.limit_projects)[i] IN ('', project_id)
                        AND (ask.limit_keys)[i] IN ('', key_id)
                    THEN
                        used[i] := used[i] + more;
                    END IF;
                END LOOP;
                IF ask.open_id IS NULL THEN
                    outcome := 'MADE';
                    made := made || ask.n;
                ELSE
                    outcome := 'GROWN';
                    grown := grown || ask.n;
                    mores := mores || more;
                END IF;
            END IF;
        END IF;
        free_pico := free;
        RETURN NEXT;
    END LOOP;

    IF made <> '{}' THEN
        WITH kept AS (
            INSERT INTO hold
            SELECT a.id, a.shard, a.account_id, a.project, a.key, a.pico, a.event_us,
                now_at + a.ttl_us * interval '1 microsecond'
            FROM unnest(shards, ids, accounts, projects, keys, amounts, event_times_us, ttls_us)
                WITH ORDINALITY
                AS a (shard, id, account_id, project, key, pico, event_us, ttl_us, n)
            WHERE a.n = ANY (made)
        )
        INSERT INTO account_reserved
        SELECT accounts[n], sum(amounts[n]) FROM unnest(made) AS n GROUP BY 1 ORDER BY 1
        ON CONFLICT (account_id)
        DO UPDATE SET amount_pico = account_reserved.amount_pico + excluded.amount_pico;
    END IF;
    IF grown <> '{}' THEN
        WITH kept AS (
            UPDATE hold h SET amount_pico = h.amount_pico + g.more,
                expires_at = now_at + ttls_us[g.n] * interval '1 microsecond'
            FROM unnest(grown, mores) AS g (n, more) WHERE h.hold_id = ids[g.n]
        )
        UPDATE account_reserved r SET amount_pico = r.amount_pico + g.more
        FROM (SELECT accounts[g.n] AS account_id, sum(g.more) AS more
            FROM unnest(grown, mores) AS g (n, more) GROUP BY 1) g
        WHERE r.account_id = g.account_id;
    END IF;

    RETURN QUERY
    SELECT a.n, CASE WHEN a.id = ANY (gone) THEN 'RELEASED' ELSE 'GONE' END,
        '', '', '0', 0::bigint, 0::bigint, '0', ''
    FROM unnest(kinds, ids) WITH ORDINALITY AS a (kind, id, n) WHERE a.kind = 2;
END
$$;
