"""Random recipes: each either quantizes a model that reloads to the same logits, or is refused by our own error."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mote_quant
from mote_quant.errors import MoteError
from mote_quant.memory.ledger import weigh
from tests import pico
from tests.mixtures import logits
from tests.sources import source_for

FAMILIES = {"llama": pico.PICO["llama"], "qwen2": pico.PICO["qwen2"], "llava": pico.PICO["llava"]}
FAMILIES |= {"gpt2": pico.PICO["gpt2"], "qwen2_moe": pico.qwen2_moe}
ROLES = ("routed", "shared", "ffn", "attention", "head", "embedding", "router", "norm", "vision", "projector")


def optional(**choices: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=choices)


integers = st.builds(
    lambda name, more: {"format": name} | more,
    st.sampled_from(["int8", "int6", "int5", "int4", "int3", "int2"]),
    optional(
        group_size=st.sampled_from([-1, 7, 8, 16, 64]),
        symmetric=st.booleans(),
        scale_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        method=st.sampled_from(["rtn", "gptq", "awq", "hqq"]),
        clip=st.sampled_from(["none", "search"]),
        act_order=st.booleans(),
        uneven=st.sampled_from(["pad", "refuse"]),
    ),
)
codebooks = st.builds(
    lambda name, more: {"format": name} | more,
    st.sampled_from(["nf4", "fp4"]),
    optional(block_size=st.sampled_from([64, 256]), double_quant=st.booleans()),
)
autos = st.builds(
    lambda bits, decide, method: {
        "format": "auto",
        "choices": ["int2", "int3", "int5"],
        "average_bits": bits,
        "decide": decide,
        "method": method,
    },
    st.sampled_from([1.5, 2.0, 2.7, 4.0, 8.0]),
    st.sampled_from(["module", "expert", "layer"]),
    st.sampled_from(["rtn", "gptq"]),
)
floats = st.sampled_from(["float32", "bfloat16", "float16"])
formats = integers | integers | codebooks | autos | floats
quantize = optional(
    calibration=st.just({"data": "pico", "samples": 4, "batch_size": 3}),
    unhit=st.sampled_from(["fallback_rtn", "route_all", "error"]),
    measure=st.sampled_from(["roles", "model", "none"]),
    skip_rate=st.sampled_from([0.0, 0.3]),
)
UPCYCLES = st.sampled_from([None, None, {"experts": 3, "noise": 0.3}, {"experts": 2, "top_k": 2, "shared": "none"}])


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    bits=st.dictionaries(st.sampled_from(ROLES), formats, min_size=1, max_size=4),
    quantize=quantize,
    upcycle=UPCYCLES,
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_recipe_is_refused_or_reloads_to_the_same(family, bits, quantize, upcycle):
    model = FAMILIES[family]()
    recipe = {"name": "random", "bits": bits, "pipeline": [*([{"upcycle": upcycle}] if upcycle else [])]}
    recipe["pipeline"].append({"quantize": quantize})
    with tempfile.TemporaryDirectory() as folder:
        with suppress(MoteError):  # anything else that is raised fails the test
            mote_quant.apply(recipe, model, data=source_for(model, samples=6), output=folder)
        if not (Path(folder) / "config.json").exists():
            return
        expected = logits(model)
        assert torch.isfinite(expected).all()
        again = type(model).from_pretrained(Path(folder))
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
        assert weigh(again).resident_bytes <= weigh(model).resident_bytes
