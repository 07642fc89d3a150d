"""What it learns from."""
from mote_quant.data.source import Source
def open_source(name, *, processor=None, max_length=None, seed=0) -> Source:
    raise NotImplementedError
