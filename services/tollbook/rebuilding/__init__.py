"""The rebuild of the ledger's database out of published tiles, or out of Kafka."""
