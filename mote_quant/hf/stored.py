"""What `config.json` may say of a saved model: closed schemas, checked before anything is built from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from mote_quant.errors import ArtifactError
from mote_quant.moe.layout import MoteLayout, without_idle
from mote_quant.recipe.explain import explain
from mote_quant.recipe.scalars import NotNegative
from mote_quant.recipe.schema import Bits, Closed

METHOD = "mote"
FORMAT_VERSION = 2
"""2: base-3 bytes are fixed-point fractions (`mote_quant.ternary.packing`)."""
_FRACTIONS = 2
WHERE = "config.json: quantization_config"

Schema = TypeVar("Schema", bound=BaseModel)


class StoredGroup(Closed):
    """Modules packed alike."""

    spec: Bits
    modules: list[str]

    @model_validator(mode="before")
    @classmethod
    def _without_idle(cls, values: Any) -> Any:
        return {**values, "spec": without_idle(values.get("spec"))} if isinstance(values, dict) else values


class StoredStructure(Closed):
    """`Structure.to_dict()`."""

    layouts: list[MoteLayout]
    packed: list[StoredGroup]
    cast: list[str]
    dtypes: dict[str, list[str]]
    unfused: list[str] = Field(default_factory=list)
    latent: list[StoredGroup] = Field(default_factory=list)


class StoredFile(Closed):
    """One entry of the manifest of weight files."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class StoredConfig(Closed):
    """`MoteConfig.to_dict()`."""

    quant_method: Literal["mote"]
    version: Annotated[int, Field(ge=1)]
    structure: dict[str, Any]
    structure_sha256: str | None = None
    latent: bool
    balance_loss: NotNegative
    z_loss: NotNegative
    files: dict[str, StoredFile]
    provenance: dict[str, Any]


def read(schema: type[Schema], values: Any, where: str = WHERE) -> Schema:
    """`values` (of JSON) as `schema` has them; ArtifactError with the first thing that is wrong."""
    try:
        # As JSON text: in strict mode only that is read into dataclasses.
        return schema.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join([where, *map(str, first["loc"])])
        known = first["type"] not in ("extra_forbidden", "unexpected_keyword_argument")
        text = explain(first["type"], first.get("ctx", {}), first["input"]) if known else "unknown key"
        raise ArtifactError(f"{path} cannot be read: {text}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} cannot be read: {error}") from error


def read_config(values: Mapping[str, Any]) -> StoredConfig:
    """A whole `quantization_config`; ArtifactError when it is malformed, of a later format, or altered."""
    version = values.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"config.json: this model is in mote format {version}, this mote-quant reads up to {FORMAT_VERSION}; "
            "upgrade mote-quant"
        )
    config = read(StoredConfig, dict(values))
    if config.version < _FRACTIONS and _packs_base3(config.structure):
        raise ArtifactError(
            f"config.json: this model's base-3 weights are of mote format {config.version}, whose bytes meant something"
            " else; apply the recipe again with this mote-quant"
        )
    if config.structure_sha256 not in (None, fingerprint(config.structure)):
        raise ArtifactError(
            "config.json was altered: quantization_config.structure is not what was saved (its sha256 differs). "
            "Copy or build the model again"
        )
    return config


def _packs_base3(structure: Mapping[str, Any]) -> bool:
    groups = structure.get("packed", [])
    return any(group["spec"].get("packing") == "base3" for group in groups if isinstance(group.get("spec"), dict))


def fingerprint(structure: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a structure."""
    return hashlib.sha256(json.dumps(structure, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
