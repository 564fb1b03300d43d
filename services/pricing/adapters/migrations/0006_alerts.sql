-- What was found and whom to tell it. All but alert_window outlives a projection that is made anew:
-- what was told once is not told again.

-- The rules as they were counted for last.
CREATE TABLE alert_rule (
    rule_id text PRIMARY KEY,
    definition text NOT NULL
);

-- How far each log was looked at; what is read again below it raises nothing.
CREATE TABLE alert_seen (
    log text PRIMARY KEY,
    size bigint NOT NULL
);

-- What was spent in each window of a rule that looks at windows; derived, as the projection is.
CREATE TABLE alert_window (
    rule_id text NOT NULL,
    account_id text NOT NULL,
    window_start_us bigint NOT NULL,
    amount_pico numeric(39, 0) NOT NULL,
    told boolean NOT NULL,
    PRIMARY KEY (rule_id, account_id, window_start_us)
);

-- On which side of a rule's level an account is, and how often it crossed it.
CREATE TABLE alert_level (
    rule_id text NOT NULL,
    account_id text NOT NULL,
    is_over boolean NOT NULL,
    crossings bigint NOT NULL,
    PRIMARY KEY (rule_id, account_id)
);

CREATE TABLE alert (
    alert_id text PRIMARY KEY,
    rule_id text NOT NULL,
    account_id text NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT now(),
    -- What is sent, the same bytes each time.
    body bytea NOT NULL
);

CREATE TABLE alert_delivery (
    alert_id text NOT NULL REFERENCES alert,
    webhook text NOT NULL,
    attempts int NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    -- NULL: it is still to be told. Else when it was told or given up.
    done_at timestamptz,
    last_error text NOT NULL DEFAULT '',
    PRIMARY KEY (alert_id, webhook)
);
CREATE INDEX alert_delivery_due ON alert_delivery (webhook, due_at) WHERE done_at IS NULL;
