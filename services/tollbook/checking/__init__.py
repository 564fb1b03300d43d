"""The check of the ledger's database: every row of every log, against all that was signed."""
