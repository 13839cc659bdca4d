"""Store a run on disk: its folder, records, checkpoints, resumable states and metrics."""
