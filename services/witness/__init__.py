"""A witness of transparency logs (C2SP tlog-witness): of our code it imports the kernel alone."""
