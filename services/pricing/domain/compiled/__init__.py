"""Adding up usage leaves in their bytes: compiled, and for plain leaves alone.

A leaf is plain when its record is a usage event written the ordinary way:
fields in order of number, each at most once, texts in ASCII, nothing unknown,
counts within the contract. What is not plain is marked ODD and left to
batch.py, which reads it by protobuf. So this code may be too strict, which
costs time, and must never be too lenient: a property test holds every answer
against batch.py's own.

Importing summing.py takes seconds, since the loops are compiled (once, and kept
on disk). tally.py imports it when it is asked to.
"""
