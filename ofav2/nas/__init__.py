"""Search for sub-networks under limits: costs, latency, candidates."""
