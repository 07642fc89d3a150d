"""Real sizes with random weights: what a checkpoint larger than memory costs to convert, and to run afterwards."""
