"""The application: its commands and global options."""

from __future__ import annotations

from typing import Annotated

import typer

from mote_quant.cli import apply, demo, doctor, evaluate, export, inspect, plan, recipes, sweep
from mote_quant.cli.session import Session
from mote_quant.version import __version__

app = typer.Typer(
    name="mote-quant",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 the request is wrong, 3 the run failed and can be resumed, 130 interrupted.",
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("apply")(apply.apply)
app.command("sweep")(sweep.sweep)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)
app.add_typer(recipes.app, name="recipes")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mote-quant {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is going on.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    """Dense Hugging Face models in, Mixtures of Ternary Experts that fit a memory budget out.

    New here? `mote-quant demo` runs everything on data that needs no download, in minutes.
    """
    context.obj = Session(debug=debug, verbose=verbose)


def main() -> None:
    """Entry point of the `mote-quant` command; exits with the codes that `--help` names."""
    app(prog_name="mote-quant")
