"""Speed, with peers beside us in the same process."""
