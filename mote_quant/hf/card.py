"""The model card of a finished model: what it is, what it weighs, how it was made. What is not known is not in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from torch import nn

from mote_quant.anatomy.roles import roles
from mote_quant.errors import ArtifactError, RequestError
from mote_quant.hf.integrity import write_atomic
from mote_quant.hf.skeleton import shadow
from mote_quant.hf.structure import Structure
from mote_quant.memory.ledger import GIB, Ledger, weigh
from mote_quant.memory.units import human_bytes
from mote_quant.recipe.bits import wording
from mote_quant.recipe.plain import settings

NAME, EVALUATION = "README.md", "evaluation.json"
MARK = "<!-- Written by mote-quant, and written anew with the model. Delete this line to keep a text of your own. -->"


def write_card(model: nn.Module, folder: Path, *, place: Path | None = None) -> None:
    """Write the card of `model`, as its config describes what is saved, into `folder`, which will become `place`.

    A card that somebody else wrote there is left alone.
    """
    if replaceable((place or folder) / NAME):
        (folder / NAME).write_text(render_card(model))


def record_evaluation(model: nn.Module, folder: Path, figures: Mapping[str, float]) -> None:
    """Keep `figures` (name -> value) measured of the saved model in `folder` beside it, and enter them into its card.

    Figures of other names stay. RequestError where the card is not ours to write, or the model is not one of ours.
    """
    if getattr(model, "hf_quantizer", None) is None or not replaceable(folder / NAME):
        raise RequestError(f"{folder / NAME} is no card of mote-quant's: enter the figures by hand")
    known = _evaluation(folder) | dict(figures)
    write_atomic(folder / EVALUATION, json.dumps(known, indent=2, sort_keys=True) + "\n")
    write_atomic(folder / NAME, render_card(model, known))


def _evaluation(folder: Path) -> dict[str, float]:
    path = folder / EVALUATION
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}: {error}); delete it") from error


def replaceable(card: Path) -> bool:
    """Whether there is no card yet, or one of ours."""
    return not card.is_file() or MARK in card.read_text(errors="replace")


def render_card(model: nn.Module, evaluation: Mapping[str, float] | None = None) -> str:
    """The card as Markdown with a YAML head; the same model (and figures measured of it since) gives the same bytes."""
    return "\n\n".join(_Card.of(model, evaluation or {}).sections()) + "\n"


@dataclass(frozen=True)
class _Card:
    """`skeleton` is what the files hold, on the meta device; `made` is the provenance in `config.json`."""

    skeleton: nn.Module
    structure: Structure
    ledger: Ledger
    made: Mapping[str, Any]
    latent: bool
    tags: Sequence[str]
    evaluation: Mapping[str, float]

    @classmethod
    def of(cls, model: nn.Module, evaluation: Mapping[str, float]) -> _Card:
        config = cast(Any, model).hf_quantizer.quantization_config
        structure = Structure.from_dict(config.structure)
        skeleton = shadow(model, structure)
        tags = tuple(getattr(model, "model_tags", None) or ())
        return cls(skeleton, structure, weigh(skeleton), config.provenance, config.latent, tags, evaluation)

    def sections(self) -> Iterator[str]:
        yield self._head()
        yield MARK
        yield f"# {self._title()}"
        yield self._what()
        yield self._loading()
        yield "## What it weighs\n\n" + self._weights()
        if self.structure.packed:
            yield "## How weights are stored\n\n" + _table(("role", "format", "layers"), self._formats())
        if self._measured:
            yield "## Measured\n\n" + _table(("figure", "value"), _figures(self._measured))
        if self.made.get("recipe"):
            yield f"## Recipe\n\n```yaml\n{self.made['recipe'].strip()}\n```"
        if self.made.get("mote_quant"):
            yield "## Made with\n\n" + _table(("what", "which"), self._versions())
        yield "## Limits\n\n" + "\n".join(f"- {line}" for line in self._limits())

    @property
    def _measured(self) -> dict[str, float]:
        return {**self.made.get("measured", {}), **self.evaluation}

    def _head(self) -> str:
        base = self.made.get("base_model")
        kinds = {"mixture-of-experts": self.structure.layouts, "quantized": self.structure.packed}
        formats = sorted({spec.format for spec in self.structure.packed.values()})
        values = {
            **({"base_model": base, "base_model_relation": "quantized"} if base else {}),
            "library_name": "mote-quant",
            **({"pipeline_tag": self._task} if self._task else {}),
            "tags": list(dict.fromkeys(["mote-quant", *(kind for kind in kinds if kinds[kind]), *formats, *self.tags])),
        }
        return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"

    def _title(self) -> str:
        recipe = yaml.safe_load(self.made["recipe"]) if self.made.get("recipe") else {}
        parts = [str(recipe.get("name") or "A model made with mote-quant"), self.made.get("base_model")]
        return " of ".join(part for part in parts if part)

    def _what(self) -> str:
        layers = Counter(_mixture(layout) for layout in self.structure.layouts)
        lines = [f"`{type(self.skeleton).__name__}` of transformers, changed by mote-quant."]
        lines += [f"Feed-forward layers that are now {kind}: {count}." for kind, count in layers.items()]
        if self.latent:
            lines.append("Trained layers are stored as the floats they are trained in, to be trained on.")
        return " ".join(lines)

    @property
    def _task(self) -> str | None:
        return next((task for task, auto in _autos().items() if _made_by(auto, self.skeleton)), None)

    def _loading(self) -> str:
        task = self._task
        auto = _autos()[task].__name__ if task else "AutoModel"
        lines = ["import mote_quant  # before loading: it tells transformers how to read these files"]
        lines += [f"from transformers import {auto}", ""]
        lines += [f'model = {auto}.from_pretrained("...", dtype="auto")  # this folder, or its id on the Hub']
        return "```python\n" + "\n".join(lines) + "\n```"

    def _weights(self) -> str:
        rows = [
            (role, f"{w.parameters:,}", f"{w.bits:.2f}", human_bytes(w.stored_bytes), human_bytes(w.resident_bytes))
            for role, w in self.ledger.roles.items()
        ]
        total = sum(weight.parameters for weight in self.ledger.roles.values())
        sums = (human_bytes(self.ledger.stored_bytes), human_bytes(self.ledger.resident_bytes))
        header = ("role", "numbers", "bits each", "in the file", "in memory")
        paper = human_bytes(round(self.ledger.paper_gib["experts"] * GIB))
        return _table(header, [*rows, ("total", f"{total:,}", "", *sums)]) + (
            "\n\nFeed-forward experts alone, as the MoTE paper counts (arXiv 2506.14435; nominal bits, no scales): "
            f"{paper}. Units are powers of 1024."
        )

    def _formats(self) -> list[Sequence[str]]:
        role_of = roles(self.skeleton)
        found = Counter((role_of(name), _stored(spec)) for name, spec in self.structure.packed.items())
        return [(role, form, f"{count:,}") for (role, form), count in found.items()]

    def _versions(self) -> list[Sequence[str]]:
        packages = {"mote-quant": self.made["mote_quant"], **self.made.get("packages", {})}
        rows = [(name, str(version)) for name, version in packages.items() if version]
        more = {"commit of mote-quant": self.made.get("commit"), "seed": self.made.get("seed")}
        more["sha256 of the model it started from"] = self.made.get("fingerprint", {}).get("model")
        more["tokens seen in training"] = self.made.get("tokens_seen") or None
        return [*rows, *((name, str(value)) for name, value in more.items() if value is not None)]

    def _limits(self) -> Iterator[str]:
        if self.structure.packed or self.structure.layouts:
            yield (
                "Only a process that has imported `mote_quant` can read it. Others stop: "
                "`Unknown quantization type, got mote`, then an error about shapes. Import it; never pass "
                "`ignore_mismatched_sizes`."
            )
        if self.structure.packed:
            yield "Packed weights do not train: put LoRA adapters on them, or start again from the recipe."
        if not self._measured:
            yield "Nothing was measured of it that this card could tell."
        yield "Whatever holds for the model it was made from, its license among it, holds for it too."


def _autos() -> dict[str, Any]:
    """What opens a model, by the task it is then for."""
    import transformers

    return {
        "image-text-to-text": transformers.AutoModelForImageTextToText,
        "text-generation": transformers.AutoModelForCausalLM,
    }


def _made_by(auto: Any, model: nn.Module) -> bool:
    kind = type(cast(Any, model).config)
    return kind in auto._model_mapping and auto._model_mapping[kind] is type(model)


def _mixture(layout: Any) -> str:
    shared = "beside a shared one" if layout.shared else "without a shared one"
    low_rank = f", each a change of rank {layout.lora_rank}" if layout.lora_rank else ""
    return f"mixtures of {layout.experts} routed experts ({layout.top_k} a token{low_rank}) {shared}"


def _stored(spec: Any) -> str:
    said = settings(spec)
    size = said.get("group_size", -1)
    parts = [wording(spec), said.get("packing"), said.get("method"), f"groups of {size}" if size > 0 else None]
    return ", ".join(part for part in parts if part)


def _figures(measured: Mapping[str, float]) -> list[Sequence[str]]:
    return [(name, f"{value:.6g}") for name, value in measured.items()]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
