-- Everything here can be dropped and rebuilt from the logs; the logs are the only truth.

CREATE TABLE projector (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch bigint NOT NULL
);
INSERT INTO projector (epoch) VALUES (0);

-- How far each log is applied; committed together with what that wrote.
CREATE TABLE log_position (
    log text PRIMARY KEY,
    size bigint NOT NULL CHECK (size >= 0)
);

CREATE TABLE account (
    account_id text PRIMARY KEY,
    currency text NOT NULL,
    display_name text NOT NULL,
    control_position bigint NOT NULL
);

CREATE TABLE api_key (
    key_id text PRIMARY KEY,
    account_id text NOT NULL,
    project_id text NOT NULL,
    secret_digest bytea NOT NULL UNIQUE,
    control_position bigint NOT NULL,
    revoked boolean NOT NULL DEFAULT false
);

CREATE TABLE rate_card (
    card_id text NOT NULL,
    version int NOT NULL,
    content_hash bytea NOT NULL,
    control_position bigint NOT NULL,
    PRIMARY KEY (card_id, version)
);

CREATE TABLE credit_grant (
    grant_id text PRIMARY KEY,
    account_id text NOT NULL,
    amount_pico numeric(39, 0) NOT NULL,
    control_position bigint NOT NULL
);

-- Control records that could not be applied, and why.
CREATE TABLE ignored_record (
    control_position bigint PRIMARY KEY,
    why text NOT NULL
);

CREATE TABLE balance (
    ledger_account text NOT NULL,
    currency text NOT NULL,
    amount_pico numeric(39, 0) NOT NULL,
    PRIMARY KEY (ledger_account, currency)
);

CREATE TABLE posting (
    posting_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id text NOT NULL,
    kind text NOT NULL,
    debit_account text NOT NULL,
    credit_account text NOT NULL,
    currency text NOT NULL,
    amount_pico numeric(39, 0) NOT NULL CHECK (amount_pico > 0),
    log text NOT NULL,
    from_position bigint NOT NULL,
    to_position bigint NOT NULL,
    card_id text NOT NULL,
    card_version int NOT NULL,
    card_hash bytea NOT NULL,
    line_id text NOT NULL,
    quantity numeric(39, 0) NOT NULL,
    rated_at_control bigint NOT NULL
);
CREATE INDEX posting_by_account ON posting (account_id, posting_id);

CREATE TABLE account_usage (
    account_id text PRIMARY KEY,
    requests bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL
);

-- Where each accepted event stands, for receipts and for callers that wait.
CREATE TABLE usage_event (
    account_id text NOT NULL,
    event_id text NOT NULL,
    log text NOT NULL,
    log_position bigint NOT NULL,
    PRIMARY KEY (account_id, event_id)
);

-- Events with a leaf that has no price yet.
CREATE TABLE suspense (
    log text NOT NULL,
    log_position bigint NOT NULL,
    account_id text NOT NULL,
    PRIMARY KEY (log, log_position)
);
CREATE INDEX suspense_by_account ON suspense (account_id);

CREATE TABLE engine (
    engine_id text PRIMARY KEY,
    event_tokens bigint NOT NULL DEFAULT 0,
    generation_tokens bigint NOT NULL DEFAULT 0,
    waste_tokens bigint NOT NULL DEFAULT 0,
    final boolean NOT NULL DEFAULT false
);
