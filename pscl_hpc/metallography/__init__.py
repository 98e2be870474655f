"""Quantitative metallography of predictions and masks: phase fractions, particles, spacing and grain size."""
