"""`mote-quant recipes`: list the shipped ones, show one, validate files."""

from __future__ import annotations

from typing import Annotated

import typer

from mote_quant.cli import completion
from mote_quant.cli.output import print_lines, print_tables
from mote_quant.cli.session import guarded
from mote_quant.errors import RecipeError

app = typer.Typer(help="List, show and validate recipes.", invoke_without_command=True)


@app.callback()
def _list_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_recipes(context)


@app.command("list")
@guarded
def list_recipes(context: typer.Context) -> None:
    """List the recipes that come with mote-quant."""
    from mote_quant.recipe import load, shipped

    recipes = [load(path) for path in shipped().values()]
    rows = [[recipe.name, recipe.model or "(--model)", recipe.description] for recipe in recipes]
    print_tables([("Shipped recipes", ["name", "model", "what it makes"], rows)])


@app.command("show")
@guarded
def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A shipped recipe or a file.", autocompletion=completion.recipes)
    ],
    source: Annotated[
        bool, typer.Option("--source", help="Show the file as it was written, with its comments and `extends`.")
    ] = False,
) -> None:
    """Show a recipe whole: its base merged in, every default written out.

    \b
    Examples:
      mote-quant recipes show mote-digits
      mote-quant recipes show mote-digits --source > mine.yaml
    """
    from pathlib import Path

    from mote_quant.recipe import dump, load, shipped

    recipe = load(name)
    text = shipped().get(name, Path(name)).read_text("utf-8") if source else dump(recipe)
    print_lines([text.rstrip()])


@app.command("validate")
@guarded
def validate(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Recipe files (or shipped names).", autocompletion=completion.recipes),
    ],
) -> None:
    """Check recipes and name every mistake in every file; exit code 2 if there is any.

    What only a model can tell (does a target match, can a tensor take its
    format) is checked by `mote-quant plan`.
    """
    from mote_quant.recipe import load

    problems: list[str] = []
    for path in paths:
        try:
            load(path)
            print_lines([f"{path}: ok"])
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
