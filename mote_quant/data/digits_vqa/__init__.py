"""Questions about scenes of real handwritten digits: a small visual question answering task that needs no download."""
