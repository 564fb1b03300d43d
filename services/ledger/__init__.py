"""The ledger: Kafka and Append in; append-only logs, Merkle trees, signed checkpoints out."""
