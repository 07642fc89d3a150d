"""The command line: one file a command. Nothing here imports torch or transformers before a command needs them."""

from mote_quant.cli.app import app, main

__all__ = ["app", "main"]
