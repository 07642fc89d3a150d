"""Measurements: benchmarks, experiments on real checkpoints, and their results."""
