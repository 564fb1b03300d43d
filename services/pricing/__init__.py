"""Pricing: what usage costs, and what is left. Reads the logs, writes none but by Append."""
