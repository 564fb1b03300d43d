"""The world outside: the engine, the spool on disk, the broker, pricing's key service."""
