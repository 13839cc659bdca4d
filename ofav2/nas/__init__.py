"""Choose sub-networks under limits: latency tables, cheapest networks, candidates."""
