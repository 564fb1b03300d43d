"""What a request used and how it ended, as pure functions. No I/O, no clock, no engine."""
