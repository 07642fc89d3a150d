"""Data that is read as it is needed, and never all in memory."""

from mote_quant.data.streams.cursor import StreamCursor
from mote_quant.data.streams.opening import open_stream
from mote_quant.data.streams.stream import Stream, Streamed

__all__ = ["Stream", "StreamCursor", "Streamed", "open_stream"]
