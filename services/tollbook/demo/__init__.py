"""The demo: the whole path on real parts, ended by an auditor's verdict."""
