"""`mote-quant demo`: the main job on data that needs no download."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mote_quant.cli.options import QuietOption, SetOption
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded
from mote_quant.cli.sweep import report_on

SWEEP = "digits"
_MOST_JOBS = 2


@guarded
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where it all goes.")] = Path(
        "runs/demo"
    ),
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the whole job on data that needs no download, in minutes.

    A dense model learns to answer questions about handwritten digits, then
    becomes a Mixture of Ternary Experts and full-precision mixtures; all are
    packed, reloaded, asked and weighed. It is the shipped sweep `digits`.
    Interrupted? The same command goes on where it stopped.
    """
    context.obj.output = output
    with watching(context.obj, quiet) as progress:
        from mote_quant.hf.integrity import write_atomic
        from mote_quant.sweeps import run

        jobs = min(_MOST_JOBS, os.cpu_count() or 1)
        options = run.Options(jobs=jobs, command="mote-quant demo", overrides=overrides or (), progress=progress)
        run.sweep(SWEEP, output, options=options)
        write_atomic(output / "report.json", (output / "results.json").read_bytes())
    if not quiet:
        report_on(output, as_json=False)
