"""What things cost, one command each: `python -m benchmarks.NAME`. docs/performance.md has the results."""
