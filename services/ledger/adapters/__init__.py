"""The ledger's doors: Kafka, PostgreSQL and gRPC."""
