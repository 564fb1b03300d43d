"""Inference: tokens for callers, every one of them counted, spooled and sent to the log."""
