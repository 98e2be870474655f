"""Feature sets: one module each."""
