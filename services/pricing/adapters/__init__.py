"""Pricing's doors: PostgreSQL and the ledger's gRPC."""
