"""`mote-quant export`: a finished model in the files of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mote_quant.cli.options import QuietOption
from mote_quant.cli.output import print_lines
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded


@guarded
def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="What to write: gptq.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go.")],
    quiet: QuietOption = False,
) -> None:
    """Write a quantized model as another runtime reads it, read it back and compare.

    gptq: all quantized layers share one format of int8, int4, int3 or int2;
    for gptqmodel, transformers and vLLM.

    \b
    Examples:
      mote-quant export runs/dense-int4 --to gptq --output runs/gptq
    """
    with watching(context.obj, quiet) as progress:
        from mote_quant.export import exporter
        from mote_quant.hf.loading import load_model, load_processor

        write = exporter(to)
        progress.start(f"exporting {folder}", 0)
        write(load_model(folder), output, load_processor(str(folder)))
    if not quiet:
        print_lines([f"model   {output}"])
