"""`save_pretrained`, whole or not at all: written aside, hashed, then moved into place, `config.json` last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from mote_quant.errors import ArtifactError, RequestError, SaveError
from mote_quant.formats import format_for
from mote_quant.hf import card
from mote_quant.hf.hub import Destination, upload
from mote_quant.hf.integrity import describe, sync
from mote_quant.hf.refusal import surplus
from mote_quant.hf.stored import METHOD
from mote_quant.hf.structure import structure_of
from mote_quant.qat.linear import QatLinear

if TYPE_CHECKING:
    from mote_quant.hf.quantizer import MoteQuantizer

_ASIDE, _CONFIG = ".saving", "config.json"


def save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    *args: Any,
    latent: bool | None = None,
    **kwargs: Any,
) -> None:
    """Save `model` so that plain `from_pretrained` reads it back to the same codes.

    `latent=True` keeps trained layers as trainable floats, `False` packs them, None does what suits the model's state.
    Other arguments are those of `PreTrainedModel.save_pretrained`; of several processes the main one writes. A model
    that wears adapters saves those alone, as in transformers. Raises SaveError; what was there before is kept.
    """
    if not is_main_process:
        return
    target = Path(save_directory)
    to = Destination(kwargs.pop("repo_id", target.name), **_taken(kwargs, Destination))
    quantizer = cast("MoteQuantizer", model.hf_quantizer)

    def save(folder: Path) -> None:
        _own_save(model)(folder, True, state_dict, False, *args, **kwargs)

    with as_save_error(target), _latent(quantizer, latent):
        written = write_whole(target, save, partial(_write_card, model, target))
    if push_to_hub:
        upload(target, written, to)


def _taken(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """What of `values` are fields of a dataclass, taken out of there."""
    return {field.name: values.pop(field.name) for field in fields(kind) if field.name in values}


def _write_card(model: nn.Module, target: Path, folder: Path) -> None:
    # Where adapters alone are saved there is no config, and nothing that a card could speak of.
    if (folder / _CONFIG).is_file():
        card.write_card(model, folder, place=target)


def save_model(model: nn.Module, folder: Path, processor: Any = None) -> list[str]:
    """Save any model, ours or still dense, and its processor: whole or not at all. Raises SaveError.

    Returns the names of the files.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    saves = [_own_save(model), *([] if processor is None else [processor.save_pretrained])]
    saves += [] if quantizer is None else [partial(_write_card, model, folder)]
    with as_save_error(folder), nullcontext() if quantizer is None else _latent(quantizer, None):
        return write_whole(folder, *saves)


def _own_save(model: nn.Module) -> Callable[..., Any]:
    """`save_pretrained` as the class has it; on our models the instance has another, which comes here."""
    return partial(cast(Any, type(model)).save_pretrained, model)


def stored_bytes(folder: Path) -> int:
    """Bytes of all tensors in the weight files of `folder`, file headers left out. ArtifactError for a cut-off file."""
    return sum(_tensor_bytes(path) for path in sorted(folder.glob("*.safetensors")))


def _tensor_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if size < 8 + header:
        raise ArtifactError(f"{path} has {size} bytes, less than its header: truncated; copy or build it again")
    return size - 8 - header


def state_to_save(model: nn.Module, quantizer: MoteQuantizer) -> dict[str, Tensor]:
    """The tensors that go into the file, with latents packed unless they are kept; sets the config to match."""
    _refuse_worn(model)
    state: dict[str, Tensor] = model.state_dict()
    latent = bool(quantizer.save_latent)
    if latent:
        state |= surplus(model)
    else:
        for name, module in model.named_modules():
            if isinstance(module, QatLinear):
                state.pop(f"{name}.weight")
                state.update({f"{name}.{key}": value for key, value in packed_tensors(module).items()})
    quantizer.quantization_config.structure = structure_of(model, latent=latent).to_dict()
    quantizer.quantization_config.latent = latent
    return state


def _refuse_worn(model: nn.Module) -> None:
    """RequestError for adapters of PEFT within the model, where it is not transformers that saves them apart."""
    worn = any(isinstance(getattr(module, "base_layer", None), nn.Module) for module in model.modules())
    if worn and not getattr(model, "_hf_peft_config_loaded", False):
        raise RequestError(
            "this model wears adapters: save those with the PeftModel's own save_pretrained, or take them off with "
            "unload() before the model itself is saved"
        )


def packed_tensors(module: QatLinear) -> dict[str, Tensor]:
    """What packing stores for a latent layer."""
    return format_for(module.spec).compress(module.codes())


@contextmanager
def _latent(quantizer: MoteQuantizer, latent: bool | None) -> Iterator[None]:
    config, before = quantizer.quantization_config, quantizer.save_latent
    live = config.latent, config.structure
    if latent and not config.latent:
        raise RequestError(
            "latent=True, but this model is packed and has no latent weights to keep; a recipe keeps them with "
            "quantize: {keep_latents: true}"
        )
    if latent is not None:
        quantizer.save_latent = latent
    try:
        yield
    finally:
        quantizer.save_latent = before
        config.latent, config.structure = live


@contextmanager
def as_save_error(target: Path) -> Iterator[None]:
    """Whatever goes wrong with the disk inside is a SaveError."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{target} could not be written: {error}. Whatever was there before is untouched; mend that and repeat"
        ) from error
    except Exception as error:
        # safetensors reports a full disk in an exception of its own.
        if "SafetensorError" not in type(error).__name__:
            raise
        raise SaveError(
            f"{target} could not be written: {error}. Whatever was there before is untouched; mend that and repeat"
        ) from error


def write_whole(target: Path, *saves: Callable[[Path], Any]) -> list[str]:
    """Let each of `saves` write to (or check) a folder aside, then move all of it into `target`, config.json last.

    Returns the names of the files; a model card is none of them, for people write on. An error in any of them leaves
    what was in `target` as it was.
    """
    aside = _fresh(target / _ASIDE)
    try:
        for save in saves:
            save(aside)
        return _move_into_place(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fresh(folder: Path) -> Path:
    if folder.parent.is_file():
        raise NotADirectoryError(f"{folder.parent} is a file, a folder is needed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _move_into_place(aside: Path, target: Path) -> list[str]:
    _list_weights(aside)
    written = [path for path in aside.rglob("*") if path.is_file()]
    for path in written:
        sync(path)
    names = [path.relative_to(aside).as_posix() for path in sorted(written, key=_in_order)]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, target / name)
    if _CONFIG in names:
        _drop_stale(target, set(names))
    sync(target)
    return [name for name in names if name != card.NAME]


def _in_order(path: Path) -> tuple[bool, bool, str]:
    """Weights first, `config.json`, by which the rest is found, last."""
    return path.name == _CONFIG, path.suffix != ".safetensors", path.name


def _list_weights(folder: Path) -> None:
    """Enter the weight files into the config of a model of ours."""
    path = folder / _CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    if config.get("quantization_config", {}).get("quant_method") == METHOD:
        weights = sorted(folder.glob("*.safetensors"))
        config["quantization_config"]["files"] = {weight.name: describe(weight) for weight in weights}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _drop_stale(target: Path, written: set[str]) -> None:
    """Remove the weights (of any variant) of the model that was there before: one config describes one model."""
    for pattern in ("model*.safetensors", "model.safetensors.index*.json"):
        for path in target.glob(pattern):
            if path.name not in written:
                path.unlink()
