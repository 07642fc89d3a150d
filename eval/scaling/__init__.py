"""What training on many devices takes: arithmetic for docs/scaling.md, a small simulation, and runs that check both."""
