"""Heads: one module each."""
