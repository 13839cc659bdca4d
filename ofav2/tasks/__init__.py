"""Tasks: what an output means, how wrong it is, and how good a network is at it."""
