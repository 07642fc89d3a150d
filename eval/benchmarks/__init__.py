"""Speed, with peers beside us: `make bench`, or `python -m eval.benchmarks` (docs/benchmarks.md)."""

import os

# Before torch is there: libraries with an OpenMP of their own (bitsandbytes) ask the environment, not torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
