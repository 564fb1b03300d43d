"""The processes of the ledger."""
