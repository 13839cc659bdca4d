"""Measure sub-networks: extract, recalibrate batch norm, score."""
