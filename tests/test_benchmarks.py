"""The benchmark runs end to end at tiny sizes, and what it writes has the form that `bench.json` has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.benchmarks import generation, ggml, kernels, limits, matmul, model, models
from eval.benchmarks.__main__ import main
from eval.benchmarks.rows import Row, compared, summary, with_means
from eval.benchmarks.scale import QUICK
from eval.benchmarks.targets import AMX_OFF, TARGETS, TWO_BIT, target_of
from eval.benchmarks.timing import race
from mote_quant.kernels import PackedLinear
from mote_quant.kernels.cpu import library

KEYS = {
    *("id", "ours", "shape", "threads", "tokens", "ours_s", "peer", "peer_s", "ratio", "ratio_spread"),
    *("target", "met", "dtype", "note", "part", "read_bytes", "operations"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_writes_rows_a_page_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--only", "matmul,layer,gpu", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert all(set(row) == KEYS for row in rows)
    assert all(row["ratio"] > 0 and len(row["ratio_spread"]) == 2 for row in rows)
    decode = [row for row in rows if row["id"] == "decode-2bit-vs-torch-bf16"]
    assert [row["shape"] for row in decode] == [[512, 256], [256, 512], []]
    assert all(row["met"] == (row["ratio"] >= 12.0) and row["target"] == 12.0 for row in decode)
    machine = json.loads((tmp_path / "bench-machine.json").read_text())
    assert machine["read_gb_per_s"]["1"] > 0
    assert machine["versions"]["torch"] == torch.__version__
    assert (tmp_path / "bench-roofline.png").stat().st_size > 10_000
    page, printed = (tmp_path / "bench.md").read_text(), capsys.readouterr().out
    for target in TARGETS:
        if target.without is not None and target.with_amx is not None:
            assert target.what in page
            assert target.what in printed
    # A part that is run again leaves the rows of the others alone.
    assert main(["--quick", "--only", "gpu", "--output", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "bench.json").read_text())
    assert [row["id"] for row in again if row["part"] != "gpu"] == [row["id"] for row in rows if row["part"] != "gpu"]


def test_a_part_that_fails_is_told_and_spares_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> list[Row]:
        raise RuntimeError("no room")

    monkeypatch.setattr("eval.benchmarks.layer.rows", fail)
    assert main(["--quick", "--only", "layer,gpu", "--output", str(tmp_path)]) == 3
    assert "no room" in json.loads((tmp_path / "bench-machine.json").read_text())["skipped"]["layer"]
    assert "not measured" in (tmp_path / "bench.md").read_text()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "matmul,everything", "--output", str(tmp_path)])


def test_models_are_timed_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_run", generation.run)
    rows = {row.id: row for row in model.rows(QUICK)}
    assert {"model-decode-vs-fp-moe", "model-decode-vs-dense-bf16", "model-peak-memory-vs-fp-moe"} <= rows.keys()
    assert rows["model-decode-vs-fp-moe"].ours_s > 0
    # One of the two is the process, which in a test has room of its own; tensors are as large in memory as in the file.
    assert any(ratio == pytest.approx(1.0, abs=0.02) for ratio in rows["resident-vs-stored"].ratio_spread)


def test_the_models_are_what_their_names_say() -> None:
    made = models.build(models.KINDS["MoTE+int4"], QUICK.model)
    kinds = {name: type(module) for name, module in made.named_modules()}
    assert kinds["model.layers.1.mlp.experts.3.down_proj"] is PackedLinear
    assert kinds["model.layers.0.mlp.shared_expert.up_proj"] is PackedLinear
    assert kinds["model.layers.0.self_attn.q_proj"] is PackedLinear
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert not any(tensor.is_meta for tensor in made.state_dict().values())
    moe = models.build(models.KINDS["bf16 MoE"], QUICK.model)
    assert not any(isinstance(module, PackedLinear) for module in moe.modules())
    assert moe.model.layers[0].mlp.gate.top_k == 2


@pytest.mark.parametrize("kernel", kernels.OURS + kernels.peers(), ids=lambda kernel: kernel.name)
def test_contenders_compute_the_product(kernel: kernels.Kernel) -> None:
    if kernel.missing:
        pytest.skip(kernel.missing)
    if kernel.name == "read sweep" or kernel.name.startswith("ggml"):
        pytest.skip("returns no product")
    torch.manual_seed(0)
    # Ternary to begin with, so that no format loses much.
    weight = torch.randint(-1, 2, (96, 256)).float() * 0.02
    x = torch.randn(5, 256)
    product = kernel.load(kernel.pack(weight))(x.to(kernel.dtype))().float()
    error = (product - x @ weight.T).norm() / (x @ weight.T).norm()
    # What absmean gives for a scale is 2/3 of the largest weight here.
    assert error < (0.4 if kernel in kernels.OURS[:2] else 0.1)


def test_ggml_computes_the_product() -> None:
    folder = ggml.find()
    if isinstance(folder, str):
        pytest.skip(folder)
    loaded = ggml.library(folder)
    torch.manual_seed(0)
    weight, x = torch.randint(-1, 2, (64, 512)).float() * 0.02, torch.randn(3, 512)
    for kind in ("TQ2_0", "TQ1_0", "Q8_0"):
        packed = ggml.quantized(loaded, kind, weight)
        compute, fetch = ggml.Weight(loaded, kind, (64, 512), packed, loaded.plain).prepared(x)
        compute()
        assert (fetch() - x @ weight.T).norm() / (x @ weight.T).norm() < 0.02


def test_what_reads_memory_reads_all_of_it() -> None:
    data = torch.arange(1024, dtype=torch.int64)
    assert limits.sweep(data)() == 1023 * 512 or limits.native() is None


def test_rounds_take_copies_in_turn_and_compare_pairwise() -> None:
    seen: list[int] = []
    times = race({"a": [lambda: seen.append(0), lambda: seen.append(1)], "b": [int]}, 0.0, rounds=range(3, 4))
    assert seen[:2] == [0, 1]
    assert abs(seen.count(0) - seen.count(1)) <= 1
    assert len(times["a"]) == len(times["b"]) == 3
    row = compared("some-id", "a", "b", {"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 8.0]})
    assert (row.ratio, row.ratio_spread) == (3.0, (2.0, 2.5))
    assert compared("resident-vs-stored", "a", "b", {"a": [2.0], "b": [1.0]}).ratio == 2.0


def test_means_are_geometric_and_per_figure() -> None:
    rows = [Row("x", "a", "b", ratio, (ratio, ratio), shape=(size, size)) for size, ratio in ((1, 2.0), (2, 8.0))]
    assert summary(rows).ratio == pytest.approx(4.0)
    assert summary(rows).ratio_spread == (2.0, 8.0)
    assert [row.shape for row in with_means([*rows, Row("y", "a", "b", 1.0, (1.0, 1.0), shape=(1, 1))])][-1] == ()


def test_targets_depend_on_the_machine() -> None:
    row = Row("tokens32-vs-torch-bf16", TWO_BIT, "torch bf16", 2.0, (2.0, 2.0), tokens=32)
    assert (row.to_dict(amx=False)["met"], row.to_dict(amx=True)["met"]) == (True, False)
    held_back = Row("tokens32-vs-torch-bf16", AMX_OFF, "torch bf16", 2.0, (2.0, 2.0), tokens=32)
    assert held_back.to_dict(amx=True)["met"] is True
    assert Row("tokens512-vs-torch-bf16", TWO_BIT, "torch bf16", 2.0, (2.0, 2.0)).to_dict(amx=False)["met"] is None
    assert Row("resident-vs-stored", "a", "b", 1.1, (1.1, 1.1)).to_dict(amx=False)["met"] is False
    assert target_of("no-such-figure", "a", 1, "float32") is None


def test_where_there_is_amx_ours_runs_without_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert matmul._without_amx({TWO_BIT: [int]}) == {} or library.level() is library.Level.amx
    seen: list[str] = []
    monkeypatch.setattr(library, "level", lambda: library.Level.amx)
    monkeypatch.setattr(library, "set_level", lambda level: seen.append(level.name))
    (call,) = matmul._without_amx({TWO_BIT: [lambda: seen.append("product")]})[AMX_OFF]
    call()
    assert seen == ["avx512", "product", "amx"]
    figures = {figure.id: figure for figure in matmul._figures() if figure.ours == AMX_OFF}
    assert figures["tokens512-noamx-vs-torch-int8"].peers == ("torch int8 x86",)


def test_every_target_of_a_product_has_a_figure() -> None:
    figures = {figure.id for figure in matmul._figures()} | {matmul.THREADS}
    apart = ("layer", "model", "resident", "qat")
    assert {target.id for target in TARGETS if not target.id.startswith(apart)} <= figures
