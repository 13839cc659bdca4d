"""What a run keeps on disk: its folder, records, checkpoints, resumable states and metrics."""
