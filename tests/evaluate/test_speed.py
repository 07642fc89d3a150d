from __future__ import annotations

import resource
import sys
import time

import pytest
import torch

from mote_quant.errors import RequestError
from mote_quant.evaluate import speed
from mote_quant.evaluate.speed import measure_speed, peak_resident_bytes
from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, quantize_it, upcycled


class Ear:
    """Notes what a model is called with."""

    def __init__(self, model, monkeypatch) -> None:
        self.calls: list[dict] = []
        original = model.forward
        monkeypatch.setattr(model, "forward", lambda *a, **k: (self.calls.append(k), original(*a, **k))[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava", "qwen2_5_vl"])
def test_prompt_and_decoding_are_what_they_say(family, monkeypatch):
    model = pico.PICO[family]().train()
    ear = Ear(model, monkeypatch)
    found = measure_speed(model, prompt_tokens=11, new_tokens=3, repeats=2)
    assert set(found) == {"prompt_tokens_per_s", "decode_tokens_per_s"}
    assert all(rate > 0 for rate in found.values())
    lengths = [call["input_ids"].shape[1] for call in ear.calls]
    assert lengths == [11, 1] + 2 * [11, 1, 1, 1]
    if family in ("llava", "qwen2_5_vl"):
        assert pico.IMAGE_TOKEN not in ear.calls[0]["input_ids"]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_decoding_is_greedy_and_goes_on_from_the_cache(monkeypatch):
    model = pico.PICO["llama"]()
    ear = Ear(model, monkeypatch)
    measure_speed(model, prompt_tokens=8, new_tokens=4, repeats=1)
    prompt, *tokens = (call["input_ids"] for call in ear.calls[2:])
    wanted = pico.PICO["llama"]().generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.cat([prompt, *tokens], dim=1).tolist() == wanted.tolist()


def test_the_rates_are_those_of_the_clock(monkeypatch):
    model = pico.PICO["llama"]()
    original = model.forward

    def slow(*args, **kwargs):
        time.sleep(0.02)
        return original(*args, **kwargs)

    monkeypatch.setattr(model, "forward", slow)
    found = measure_speed(model, prompt_tokens=20, new_tokens=5, repeats=3)
    assert 100 < found["prompt_tokens_per_s"] < 20 / 0.02
    assert 5 < found["decode_tokens_per_s"] < 1 / 0.02


def test_the_median_is_taken(monkeypatch):
    times = iter([(9.0, 9.0), (1.0, 8.0), (50.0, 2.0), (2.0, 4.0)])
    monkeypatch.setattr(speed, "_read_and_write", lambda *given: next(times))
    found = measure_speed(pico.PICO["llama"](), prompt_tokens=10, new_tokens=8, repeats=3)
    assert found == {"prompt_tokens_per_s": 5.0, "decode_tokens_per_s": 2.0}


def test_a_packed_mixture_and_a_short_context(monkeypatch):
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY | INT4_SHARED)
    quantize_it(model, context)
    ear = Ear(model, monkeypatch)
    started = time.monotonic()
    measure_speed(model)
    assert ear.calls[0]["input_ids"].shape[1] == 64 - 16
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"new_tokens": 64}, "no room for a prompt in a context of 64"), ({"repeats": 0}, "must be at least 1")],
)
def test_what_cannot_be_measured(settings, words):
    with pytest.raises(RequestError, match=words):
        measure_speed(pico.PICO["llama"](), **settings)


def resident() -> int:
    return (
        int(next(line.split()[1] for line in speed._STATUS.read_text().splitlines() if line.startswith("VmRSS"))) * 1024
    )


@pytest.mark.skipif(not speed._STATUS.exists(), reason="Linux only")
def test_the_peak_is_that_of_this_process_and_stays():
    before = peak_resident_bytes()
    ballast = bytearray(before - resident() + 10**8)
    ballast[::4096] = b"1" * len(ballast[::4096])
    during = peak_resident_bytes()
    assert 0.8e8 < during - before < 1.5e8
    del ballast
    assert resident() < during - 0.8e8
    assert peak_resident_bytes() == pytest.approx(during, abs=1e7)


def test_where_the_peak_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "_STATUS", tmp_path / "status")
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_resident_bytes() == pytest.approx(counted * (1 if sys.platform == "darwin" else 1024), rel=0.01)
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\n")
    assert peak_resident_bytes() == 3000 * 1024
