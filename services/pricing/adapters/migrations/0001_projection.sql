-- Everything here can be dropped and rebuilt from the logs; the logs are the only truth.

-- Who projects. A write is made under the newest epoch or not at all.
CREATE TABLE projector (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch bigint NOT NULL,
    backend_pid int NOT NULL,
    renewed_at timestamptz NOT NULL
);
INSERT INTO projector (epoch, backend_pid, renewed_at) VALUES (0, 0, '-infinity');

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
    revoked_position bigint
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

-- Entries that could not be applied, and why.
CREATE TABLE ignored_entry (
    log text NOT NULL,
    log_position bigint NOT NULL,
    why text NOT NULL,
    PRIMARY KEY (log, log_position)
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
    quantity bigint NOT NULL,
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

-- Where each applied event stands, for receipts and for callers that wait. Identities are
-- strangers' text of any kind and length, so a digest of them is kept (adapters/identity.py).
CREATE TABLE usage_event (
    identity bytea NOT NULL,
    log text NOT NULL,
    log_position bigint NOT NULL
);
CREATE INDEX usage_event_by_identity ON usage_event (identity);

-- Events with a leaf that has no price yet, with what a restarted projector needs of them.
CREATE TABLE suspense (
    log text NOT NULL,
    log_position bigint NOT NULL,
    account_id text NOT NULL,
    control_size bigint NOT NULL,
    leaf bytea NOT NULL,
    PRIMARY KEY (log, log_position)
);
CREATE INDEX suspense_by_account ON suspense (account_id);

CREATE TABLE engine (
    engine_id text PRIMARY KEY,
    event_tokens bigint NOT NULL,
    generation_tokens bigint NOT NULL,
    waste_tokens bigint NOT NULL,
    final boolean NOT NULL
);
