-- Credit beyond plain grants, what is spent in windows, usage by the minute, and holds.

-- A projection made before these tables were there lacks what they hold: it is emptied, and the
-- projector makes it anew from the logs, as it may at any time.
TRUNCATE log_position, account, api_key, rate_card, credit_grant, ignored_entry, balance, posting,
    account_usage, usage_event, suspense, engine;

ALTER TABLE account ADD COLUMN credit_limit_pico numeric(39, 0) NOT NULL DEFAULT 0;

ALTER TABLE credit_grant
    ADD COLUMN priority int NOT NULL,
    ADD COLUMN expires_us bigint NOT NULL,
    ADD COLUMN project_id text NOT NULL,
    -- Of it is void; NULL: it is not closed.
    ADD COLUMN expired_pico numeric(39, 0);
CREATE INDEX credit_grant_by_account ON credit_grant (account_id);

-- When each control record was recorded.
CREATE TABLE control_time (
    control_position bigint PRIMARY KEY,
    recorded_us bigint NOT NULL
);

-- Changes of credit that were applied, by the ids that they are applied under once.
CREATE TABLE control_change (
    kind text NOT NULL,
    change_id text NOT NULL,
    account_id text NOT NULL,
    control_position bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (kind, change_id)
);
CREATE INDEX control_change_by_account ON control_change (account_id, kind, control_position);

CREATE TABLE spend_limit (
    limit_id text PRIMARY KEY,
    account_id text NOT NULL,
    project_id text NOT NULL,
    key_id text NOT NULL,
    span text NOT NULL,
    time_zone text NOT NULL,
    amount_pico numeric(39, 0) NOT NULL,
    control_position bigint NOT NULL
);
CREATE INDEX spend_limit_by_account ON spend_limit (account_id);

-- What was charged in each window of each limit.
CREATE TABLE limit_spent (
    limit_id text NOT NULL,
    window_start_us bigint NOT NULL,
    amount_pico numeric(39, 0) NOT NULL,
    PRIMARY KEY (limit_id, window_start_us)
);

-- What was used and charged, by the minute of the event's own time and all it is asked for by.
CREATE TABLE usage_minute (
    use_digest bytea PRIMARY KEY,
    account_id text NOT NULL,
    project_id text NOT NULL,
    key_id text NOT NULL,
    model text NOT NULL,
    adapter text NOT NULL,
    service_tier text NOT NULL,
    region text NOT NULL,
    outcome text NOT NULL,
    leaf text NOT NULL,
    minute_us bigint NOT NULL,
    card_id text NOT NULL,
    card_version int NOT NULL,
    line_id text NOT NULL,
    amount numeric(39, 0) NOT NULL,
    charged numeric(39, 0) NOT NULL,
    amount_pico numeric(39, 0) NOT NULL
);
CREATE INDEX usage_minute_by_account ON usage_minute (account_id, minute_us);

-- One row a shard of accounts: whoever holds its lock is the shard's one writer.
CREATE TABLE hold_shard (shard int PRIMARY KEY);
INSERT INTO hold_shard SELECT generate_series(0, 15);

-- Open holds. They are not in a log: they end by themselves within their time.
CREATE TABLE hold (
    hold_id text PRIMARY KEY,
    shard int NOT NULL REFERENCES hold_shard,
    account_id text NOT NULL,
    project_id text NOT NULL,
    key_id text NOT NULL,
    amount_pico numeric(39, 0) NOT NULL CHECK (amount_pico >= 0),
    event_time_us bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX hold_by_end ON hold (shard, expires_at);
CREATE INDEX hold_by_account ON hold (account_id, expires_at);

-- What an account's open holds keep is `reserved - settled`. Two tables, since two write: the
-- shard's writer (made, less released and ended), and the projector (charged).
CREATE TABLE account_reserved (
    account_id text PRIMARY KEY,
    amount_pico numeric(39, 0) NOT NULL
);
CREATE TABLE account_settled (
    account_id text PRIMARY KEY,
    amount_pico numeric(39, 0) NOT NULL
);
