"""`save_pretrained`, whole or not at all: written aside, hashed, then moved into place, `config.json` last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from mote_quant.errors import ArtifactError, RequestError, SaveError
from mote_quant.formats import format_for
from mote_quant.hf.integrity import describe, sync
from mote_quant.hf.stored import METHOD
from mote_quant.hf.structure import structure_of
from mote_quant.qat.linear import QatLinear

if TYPE_CHECKING:
    from mote_quant.hf.quantizer import MoteQuantizer

_ASIDE = ".saving"


def save_pretrained(
    model: nn.Module, save_directory: str | os.PathLike[str], *args: Any, latent: bool | None = None, **kwargs: Any
) -> None:
    """Save `model` so that plain `from_pretrained` reads it back to the same codes.

    `latent=True` keeps trained layers as trainable floats, `False` packs them, None does what suits the model's state.
    Other arguments are those of `PreTrainedModel.save_pretrained`. Raises SaveError; what was there before is kept.
    """
    if kwargs.pop("push_to_hub", False):
        raise RequestError("push_to_hub is not supported here: save to a folder, then upload the folder")
    quantizer = cast("MoteQuantizer", model.hf_quantizer)
    target = Path(save_directory)
    with as_save_error(target), _latent(quantizer, latent):
        write_whole(target, partial(_own_save(model), *args, **kwargs))


def save_model(model: nn.Module, folder: Path, processor: Any = None) -> list[str]:
    """Save any model, ours or still dense, and its processor: whole or not at all. Raises SaveError.

    Returns the names of the files.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    saves = [_own_save(model), *([] if processor is None else [processor.save_pretrained])]
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
    state: dict[str, Tensor] = model.state_dict()
    latent = bool(quantizer.save_latent)
    if not latent:
        for name, module in model.named_modules():
            if isinstance(module, QatLinear):
                state.pop(f"{name}.weight")
                state.update({f"{name}.{key}": value for key, value in packed_tensors(module).items()})
    quantizer.quantization_config.structure = structure_of(model, latent=latent).to_dict()
    quantizer.quantization_config.latent = latent
    return state


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
        raise SaveError(f"{target} could not be written: {error}. Whatever was there before is untouched") from error
    except Exception as error:
        # safetensors reports a full disk in an exception of its own.
        if "SafetensorError" not in type(error).__name__:
            raise
        raise SaveError(f"{target} could not be written: {error}. Whatever was there before is untouched") from error


def write_whole(target: Path, *saves: Callable[[Path], Any]) -> list[str]:
    """Let each of `saves` write to (or check) a folder aside, then move all of it into `target`, config.json last.

    Returns the names of the files. An error in any of them leaves what was in `target` as it was.
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
    config_path = aside / "config.json"
    config = json.loads(config_path.read_text())
    weights = sorted(aside.glob("*.safetensors"))
    if config.get("quantization_config", {}).get("quant_method") == METHOD:
        config["quantization_config"]["files"] = {path.name: describe(path) for path in weights}
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    written = [path for path in aside.rglob("*") if path.is_file()]
    others = [path for path in written if path not in weights and path != config_path]
    for path in written:
        sync(path)
    for path in [*weights, *others, config_path]:
        place = target / path.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    _drop_stale_shards(target, {path.name for path in weights})
    sync(target)
    return [path.relative_to(aside).as_posix() for path in written]


def _drop_stale_shards(target: Path, written: set[str]) -> None:
    for path in target.glob("model*.safetensors"):
        if path.name not in written:
            path.unlink()
    if len(written) == 1:
        (target / "model.safetensors.index.json").unlink(missing_ok=True)
