"""Usage objects of other systems, read into the same disjoint leaves as our own events. Pure."""
