"""Our files as transformers sees them: a quantization config in `config.json` and the quantizer that reads it.

Uses the public out-of-tree plug-in points of transformers (huggingface/transformers#35915).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mote_quant.hf.stored import FORMAT_VERSION, METHOD, fingerprint, read_config


class MoteConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a saved model.

    `structure` is `Structure.to_dict()`; `latent` says that trained layers are stored as trainable floats; `files` maps
    each weight file to its size and sha256; `provenance` says how the model was made.
    """

    def __init__(
        self,
        structure: dict[str, Any] | None = None,
        latent: bool = False,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        files: dict[str, dict[str, Any]] | None = None,
        provenance: dict[str, Any] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method = quant_method
        self.version = version
        self.structure = structure or {"layouts": [], "packed": [], "cast": [], "dtypes": {}}
        self.latent = latent
        self.balance_loss = balance_loss
        self.z_loss = z_loss
        self.files = files or {}
        self.provenance = provenance or {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sha256 of the structure; `from_dict` is its inverse."""
        values: dict[str, Any] = super().to_dict()
        return values | {"structure_sha256": fingerprint(self.structure)}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From `config.json`; ArtifactError when it is malformed, of a later format, or altered."""
        values = read_config(config_dict).model_dump(exclude={"structure_sha256"})
        return super().from_dict(values, return_unused_kwargs, **kwargs)


class MoteQuantizer(HfQuantizer):  # type: ignore[misc]
    """Rebuilds our modules on the meta skeleton before weights are read, and packs the weights when they are saved."""

    requires_calibration = True
    quantization_config: MoteConfig
    # None follows the model: latent while it is being made, packed once it is finished.
    save_latent: bool | None = None

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        from mote_quant.hf.headless import fitted
        from mote_quant.hf.integrity import verify_files
        from mote_quant.hf.refusal import expect_surplus
        from mote_quant.hf.structure import Structure, rebuild

        config = self.quantization_config
        verify_files(checkpoint_files or [], config.files)
        structure = fitted(Structure.from_dict(config.structure), model)
        rebuild(model, structure)
        expect_surplus(model)
        config.structure = structure.to_dict()

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any) -> list[Any]:
        """The model's own conversions, without effect on experts that were taken apart."""
        from mote_quant.hf.conversions import spare

        updated = super().update_weight_conversions(weight_conversions, *args)
        return spare(updated, self.quantization_config.structure.get("unfused", []))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from mote_quant.hf.attach import attach

        attach(model, quantizer=self)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
        """What `save_pretrained` writes."""
        from mote_quant.hf.saving import state_to_save

        return state_to_save(model, self), {}

    def is_serializable(self) -> bool:
        """Always: packed bytes are what we are for."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Always: gradients pass through packed weights, so adapters on top of them train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True while trained layers are held as floats, and so can be trained without adapters."""
        return bool(self.quantization_config.latent)


def register() -> None:
    """Enter both classes into transformers' tables; a second call changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(MoteConfig)
        register_quantizer(METHOD)(MoteQuantizer)


register()
