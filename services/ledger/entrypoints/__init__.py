"""The ledger's processes."""
