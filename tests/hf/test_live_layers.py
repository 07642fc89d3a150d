"""Models that transformers has loaded with another library's layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mote_quant
from mote_quant.errors import ModelError
from mote_quant.hf.foreign import READERS, bitsandbytes
from mote_quant.hf.foreign.live import take_over
from mote_quant.recipe.schema import IntegerBits
from tests import pico
from tests.foreign import packed_model
from tests.mixtures import INT4_SHARED, recipe

INT4 = IntegerBits(format="int4", group_size=32)


class Theirs(nn.Module):
    """A model as transformers would have loaded it with a library's layers."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.config = pico.PICO["llama"]().config
        self.config.quantization_config = {"quant_method": method}


@pytest.mark.parametrize("method", [*sorted(set(READERS) - {"bitsandbytes"}), "fp8"])
def test_live_layers_of_a_library_are_refused(method):
    with pytest.raises(ModelError, match=rf"Theirs holds layers of {method}; load .* mote_quant.load_model\(folder\)"):
        take_over(Theirs(method))


def test_apply_looks_for_them():
    model = pico.PICO["llama"]()
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match=r"layers of gptq; load the same files with mote_quant.load_model"):
        mote_quant.apply(recipe(INT4_SHARED), model)


def test_dense_models_and_our_own_are_left_alone():
    for model in (pico.PICO["llama"](), packed_model("llama", INT4)):
        before = dict(model.named_modules())
        take_over(model)
        assert dict(model.named_modules()) == before


def test_bitsandbytes_layers_are_known_by_their_tensors():
    reader = bitsandbytes.BitsAndBytes.of({"load_in_4bit": True})
    assert reader.holds({"weight": torch.ones(2), "weight.quant_state.bitsandbytes__nf4": torch.ones(2)})
    assert reader.holds({"weight": torch.ones(2), "SCB": torch.ones(2)})
    assert not reader.holds({"weight": torch.ones(2), "bias": torch.ones(2)})
