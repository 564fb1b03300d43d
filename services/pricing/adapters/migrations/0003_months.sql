-- How a line was found, with the factors on its price; and the month, where a charge depends on it.
ALTER TABLE posting
    ADD COLUMN rule text NOT NULL DEFAULT '',
    ADD COLUMN period text NOT NULL DEFAULT '';

-- Units of a calendar month, for included units and tiers by monthly volume.
CREATE TABLE meter (
    account_id text NOT NULL,
    currency text NOT NULL,
    card_id text NOT NULL,
    meter text NOT NULL,
    period text NOT NULL,
    card_version int NOT NULL,
    line_id text NOT NULL,
    factor text NOT NULL,
    rule text NOT NULL,
    units numeric(39, 0) NOT NULL,
    PRIMARY KEY (
        account_id, currency, card_id, meter, period, card_version, line_id, factor, rule
    )
);

-- What a meter stood at before each run that moved it: from here a receipt is rated again.
CREATE TABLE meter_move (
    account_id text NOT NULL,
    card_id text NOT NULL,
    meter text NOT NULL,
    period text NOT NULL,
    log text NOT NULL,
    from_position bigint NOT NULL,
    to_position bigint NOT NULL,
    rated_at_control bigint NOT NULL,
    before jsonb NOT NULL
);
CREATE INDEX meter_move_by_place ON meter_move (account_id, log, from_position);

-- Months under a card with a commitment.
CREATE TABLE committed_month (
    account_id text NOT NULL,
    currency text NOT NULL,
    card_id text NOT NULL,
    period text NOT NULL,
    charged_pico numeric(39, 0) NOT NULL,
    card_version int NOT NULL,
    is_closed boolean NOT NULL,
    PRIMARY KEY (account_id, currency, card_id, period)
);
