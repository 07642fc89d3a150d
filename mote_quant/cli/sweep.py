"""`mote-quant sweep`: who wins at which size, fairly compared."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote_quant.cli import completion
from mote_quant.cli.options import JsonOption, QuietOption, SetOption
from mote_quant.cli.output import Table, print_json, print_lines, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import Session, guarded
from mote_quant.errors import SweepError

if TYPE_CHECKING:
    from mote_quant.sweeps.budgets import Selection
    from mote_quant.sweeps.load import Loaded


@guarded
def sweep(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP", help="A sweep file, or the name of a shipped one.", autocompletion=completion.sweeps
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where it all goes; runs/<sweep> without.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Another base model than the sweep's.",
            autocompletion=completion.models,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Other data than the sweep's.", autocompletion=completion.data),
    ] = None,
    overrides: SetOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cells at a time, a process each.")] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Run the --jobs cells on a Ray cluster (or `local`).")
    ] = None,
    gpus: Annotated[float, typer.Option("--gpus", min=0.0, help="GPUs of the Ray cluster for each cell.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who would take part; train nothing.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train, quantize and measure every contender of a sweep; draw the memory-accuracy front.

    DIR gets results.json, points.csv, report.md, pareto.png and index.html.
    Interrupted? The same command goes on; what is done is not done again.

    \b
    Examples:
      mote-quant sweep digits --output runs/digits --jobs 2
      mote-quant sweep my-sweep.yaml --set 'seeds=[0]' --dry-run
    """
    session: Session = context.obj
    settings = [*(overrides or ()), *([f"base.model={model}"] if model else []), *([f"data={data}"] if data else [])]
    with watching(session, quiet) as progress:
        from mote_quant.sweeps.run import Options, preview, sweep

        if dry_run:
            _show(*preview(file, settings), as_json)
            return
        session.output = output or Path("runs") / Path(file).name.removesuffix(".yaml")
        command = f"mote-quant {shlex.join(sys.argv[1:])}"
        options = Options(jobs, ray, gpus, command, settings, progress)
        try:
            sweep(file, session.output, options=options)
        except SweepError:
            _report(session.output, quiet, as_json)
            raise
    _report(session.output, quiet, as_json)


def _report(folder: Path, quiet: bool, as_json: bool) -> None:
    if not quiet:
        report_on(folder, as_json)


def report_on(folder: Path, as_json: bool) -> None:
    """What a sweep came to, as its folder holds it; nothing where it has not come to anything yet."""
    import json

    from mote_quant.sweeps.report import brief_tables, caveats, headlines

    path = folder / "results.json"
    if not path.exists():
        return
    document: dict[str, Any] = json.loads(path.read_text())
    if as_json:
        print_json(document)
        return
    print_tables((table.title, table.header, table.rows) for table in brief_tables(document))
    said = [headline.text for headline in headlines(document)]
    misfits = len(document["misfits"])
    said += [*caveats(document), *([f"{misfits} do not fit a budget; report.md says why."] if misfits else [])]
    print_lines([*said, "", f"page    {folder / 'index.html'}", f"points  {folder / 'points.csv'}"])


def _show(loaded: Loaded, selection: Selection, as_json: bool) -> None:
    if as_json:
        print_json({"fits": selection.fits, "misfits": selection.misfits, "impossible": selection.impossible})
    else:
        print_tables(preview_tables(loaded, selection))


def preview_tables(loaded: Loaded, selection: Selection) -> list[Table]:
    """Who takes part, who does not fit, who cannot be built."""
    groups = {candidate.name: candidate.group for candidate in loaded.candidates}
    return [
        (
            "Taking part",
            ["contender", "group", "fits"],
            [[n, groups[n], ", ".join(f)] for n, f in selection.fits.items()],
        ),
        ("Too large", ["contender", "budget", "why"], [[*row.values()] for row in selection.misfits]),
        ("Impossible", ["contender", "why"], [[*row.values()] for row in selection.impossible]),
    ]
