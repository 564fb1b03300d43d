"""The ledger: append-only logs with proofs. Owns the schema `ledger` and nothing beyond it."""
