-- When an account is topped up by itself, and whether it is armed: it fires once for each time that
-- the balance falls below the threshold, and not again before it was at or above it.
CREATE TABLE top_up_rule (
    account_id text PRIMARY KEY,
    threshold_pico numeric(39, 0) NOT NULL,
    -- NULL: it does not fire.
    amount_pico numeric(39, 0),
    armed boolean NOT NULL,
    crossings bigint NOT NULL
);
