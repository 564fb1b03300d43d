"""Public price lists of others, turned into rate cards. Pure: bytes in, text out."""
