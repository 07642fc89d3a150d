"""A model from the Hugging Face Hub: only when the user names it, and into the hub's own cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from mote_quant.errors import ModelError, RequestError, first_line

ADVICE = (
    "Check the name and the connection (HF_HUB_OFFLINE turns it off; gated models want `hf auth login`), or give the "
    "path of a model folder"
)


def check_asked_for(name: str, recipe: str) -> None:
    """RequestError where `name` is what shipped recipe `recipe` suggests, and not on this machine yet."""
    from huggingface_hub import try_to_load_from_cache

    if not Path(recipe).exists() and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise RequestError(
            f"recipe {recipe} is made for {name}, which is not on this machine, and nothing is downloaded unasked: "
            f"say --model {name} to have it downloaded, or give a model folder"
        )


def fetch(name: str, quiet: bool) -> Path:
    """The folder that hub model `name` lies in, downloaded where it was not. ModelError where it cannot be had."""
    from mote_quant.hf.loading import downloaded

    if not quiet:
        typer.echo(f"fetching {name} from the Hugging Face Hub", err=True)
    try:
        with _hub_bars(quiet):
            folder = downloaded(name)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ModelError(f"{name} could not be had from the Hugging Face Hub: {first.rstrip('.')}. {ADVICE}") from error
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{name}: no weights (*.safetensors) could be had from the Hugging Face Hub. {ADVICE}")
    return folder


@contextmanager
def _hub_bars(quiet: bool) -> Iterator[None]:
    """The hub's own progress bars, which know the bytes; they are silent in all the rest of a command."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    (disable_progress_bars if quiet else enable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if before else enable_progress_bars)()
