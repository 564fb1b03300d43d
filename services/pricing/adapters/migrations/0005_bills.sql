-- What every account is billed for, and where the ends of periods lie in the logs.

-- A projection made before these tables were there lacks what they hold: it is emptied, and the
-- projector makes it anew from the logs, as it may at any time.
TRUNCATE log_position, account, api_key, rate_card, credit_grant, ignored_entry, balance, posting,
    account_usage, usage_event, suspense, engine, control_time, control_change, spend_limit,
    limit_spent, usage_minute, meter, meter_move, committed_month, top_up_rule;

-- Charges by month and line, and by where they come from (domain/billing.py). Of a metered line,
-- which has a factor, the units alone are summed.
CREATE TABLE bill_sum (
    bill_digest bytea PRIMARY KEY,
    account_id text NOT NULL,
    currency text NOT NULL,
    month text NOT NULL,
    card_id text NOT NULL,
    meter text NOT NULL,
    card_version int NOT NULL,
    line_id text NOT NULL,
    -- Empty: the line is not metered.
    factor text NOT NULL,
    rule text NOT NULL,
    log text NOT NULL,
    era int NOT NULL,
    units numeric(39, 0) NOT NULL,
    amount_pico numeric(39, 0) NOT NULL
);
CREATE INDEX bill_sum_by_account ON bill_sum (account_id);

-- The first entry of each log that was pinned beyond so many ends of periods.
CREATE TABLE log_era (
    log text NOT NULL,
    era int NOT NULL,
    first_position bigint NOT NULL,
    PRIMARY KEY (log, era)
);
