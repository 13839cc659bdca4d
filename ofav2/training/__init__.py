"""Phases, the training loop, judging, checkpoints and tracking."""
