"""Processes that can be started."""
