"""Rating and balances as pure functions of the logs. No I/O, no clock, no float."""
