"""Our methods beside those of other libraries: same checkpoint, same tokens, every perplexity by the same code.

Each library is run in its own environment, from the repository root; nothing of mote-quant needs to be installed there.
"""
