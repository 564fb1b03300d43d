"""What every service shares and nothing else: bytes, proofs, money, clocks, telemetry.

Owns the formats an outsider must be able to recompute (leaf, tree, note,
tiles, money) and the plumbing that all processes need. Imports nothing of the
services.
"""
