"""The outsider: imports the kernel and the pure domains, never an adapter of a service."""
