"""The hot path in compiled loops over columns: what is done for every event, and only that.

Everything here has a plain twin in the domain that says what it must give
(scan.py, batch.py, kernel.merkle); what these loops do not recognise at once
they leave to the twin. Nothing here decides anything by itself.
"""
