"""Define tasks: what outputs mean, their loss, and their metrics."""
