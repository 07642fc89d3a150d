from __future__ import annotations

import pytest
import torch

from mote_quant.errors import FormatError
from mote_quant.formats import dtype_of, format_for
from mote_quant.formats.base import TensorSpec
from mote_quant.formats.floating import bits_of
from mote_quant.recipe.schema import FloatBits, FloatName


def test_float_formats_are_not_packed():
    with pytest.raises(FormatError, match="not a packed format"):
        format_for(FloatBits(format="bfloat16"))


@pytest.mark.parametrize("name", FloatName.__args__)
def test_every_float_name_of_the_recipe_has_a_type(name):
    assert dtype_of(name) == getattr(torch, name)
    assert bits_of(dtype_of(name)) == torch.finfo(dtype_of(name)).bits


def test_other_names_are_refused():
    with pytest.raises(FormatError, match=r"'int4'.*float32, bfloat16, float16"):
        dtype_of("int4")


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_bytes_of_a_spec_are_those_of_the_tensor(shape, dtype):
    assert TensorSpec(shape, dtype).nbytes == torch.empty(shape, dtype=dtype).nbytes
