"""`mote-quant demo`: the main job on data that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mote_quant.cli.options import QuietOption
from mote_quant.cli.output import print_lines, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded


@guarded
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where it all goes.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed of everything.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Run the whole job on data that needs no download, in minutes.

    A dense model learns to answer questions about handwritten digits, then
    becomes a Mixture of Ternary Experts and a full-precision mixture; both are
    packed, reloaded in a fresh process, asked and weighed.
    Interrupted? The same command goes on where it stopped.
    """
    context.obj.output = output
    with watching(context.obj, quiet) as progress:
        import mote_quant.demo as job

        report = job.run(output, seed, progress)
    if not quiet:
        from mote_quant.demo.page import HEADER, rows

        print_tables([("Mixture of Ternary Experts on digits-vqa", HEADER, rows(report["points"]))])
        print_lines([f"report  {output / 'index.html'}", f"points  {output / 'report.json'}"])
