"""The pure core: what becomes of a record, and how a log grows. No I/O, no clock."""
