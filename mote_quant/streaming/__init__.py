"""Checkpoints larger than memory: opened mapped, changed, written and let go stage by stage."""

from mote_quant.streaming.eligible import held_because, streamable
from mote_quant.streaming.run import Stream, read_once

__all__ = ["Stream", "held_because", "read_once", "streamable"]
