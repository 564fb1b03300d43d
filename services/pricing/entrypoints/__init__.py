"""The processes of pricing."""
