"""The ledger's doors to Kafka, PostgreSQL and gRPC."""
