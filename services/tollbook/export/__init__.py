"""The export: everything an auditor needs of a running system, as files."""
