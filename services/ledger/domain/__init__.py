"""The ledger's pure core: what a record is worth, where it stands, how the tree grows. No I/O."""
