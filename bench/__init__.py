"""Measurements, each beside its baseline, on the real parts."""
