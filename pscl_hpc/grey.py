"""How colour becomes grey, the same in ingest, reading, views and exported models."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey level, ITU-R BT.601."""
