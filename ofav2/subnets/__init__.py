"""Sub-networks in hand: what they cost, and taking them out of a run."""
