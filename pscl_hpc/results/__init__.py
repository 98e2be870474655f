"""Scores of runs and the comparisons between them, which reports and studies share."""
