"""Which families of transformers go the whole path, tried out at pico size: `python -m eval.families`."""
