"""Statements for people: read from their canonical JSON, and laid out as HTML and as PDF."""
