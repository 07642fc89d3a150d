from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mote_quant.cli import hub
from mote_quant.cli.models import on_hub, to_open, to_plan
from mote_quant.data.digits_vqa import model as dense
from mote_quant.data.digits_vqa import processor
from mote_quant.errors import ModelError, RequestError
from mote_quant.recipe import load

RECIPE = load({"name": "r", "seed": 5, "bits": {"ffn": "int8"}, "pipeline": ["quantize"]})


def opened(name: str, source: str = "mine.yaml", asked: bool = True) -> Any:
    return to_open(name, RECIPE, source, asked, quiet=True)


def test_an_embedded_model_is_built_under_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "build_dense", lambda seed: f"built under {seed}")
    monkeypatch.setattr(processor, "build_processor", lambda: "processor")
    assert opened("digits-vqa") == ("built under 5", "processor")


def test_a_folder_is_left_to_the_pipeline(model: str) -> None:
    assert opened(model) == (model, None)


@pytest.mark.parametrize("name", ["digits-vqa", "stdlib-text", "Qwen2.5-3B", "Qwen/qwen2.5-3b", "google/gemma-3-1b-it"])
def test_known_names_are_left_to_the_planner(name: str) -> None:
    assert to_plan(name) == name


def test_sizes_alone_cannot_be_opened() -> None:
    with pytest.raises(ModelError, match="known by its sizes alone"):
        opened("Qwen2.5-3B")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Qwen2.5-3", "Qwen2.5-3B"), ("digit-vqa", "digits-vqa"), ("llama-3.2-1b-x", "Llama-3.2-1B"), ("runz", "runs")],
)
def test_near_misses(name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError, match=f"as {name}; did you mean .*{meant}"):
        to_plan(name)


def test_what_is_a_hub_id_and_what_a_mistyped_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "dense").mkdir(parents=True)
    assert on_hub("someone/some-model")
    assert not on_hub("runs/dense")
    assert not on_hub("Qwen2.5-3B")
    with pytest.raises(ModelError, match=r"there is no runs/dnse; did you mean dense\?"):
        on_hub("runs/dnse")
    for path in ("./x", "../x/y", "/x/y", "a/b/c", "owner/"):
        with pytest.raises(ModelError, match=f"there is no {path}"):
            on_hub(path)


class Downloads:
    """Stands in for `snapshot_download`: a folder with these files, or an error."""

    def __init__(self, folder: Path, *files: str, error: Exception | None = None) -> None:
        self.folder, self.error, self.names = folder, error, list[str]()
        for file in files:
            (folder / file).write_text("{}")

    def __call__(self, name: str, **options: Any) -> str:
        self.names.append(name)
        if self.error is not None:
            raise self.error
        return str(self.folder)


def test_a_hub_model_is_fetched_into_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = Downloads(tmp_path, "config.json", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloads)
    assert opened("someone/some-model") == ("someone/some-model", None)
    assert downloads.names == ["someone/some-model"]


def test_a_hub_model_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Downloads(tmp_path, error=LocalEntryNotFoundError("no connection\nand more"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(ModelError, match=r"someone/some-model could not be had.*no connection.*HF_HUB_OFFLINE") as told:
        opened("someone/some-model")
    assert "and more" not in str(told.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Downloads(tmp_path, "config.json"))
    with pytest.raises(ModelError, match="no weights"):
        opened("someone/some-model")


def test_nothing_is_downloaded_because_a_shipped_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = Downloads(tmp_path, "config.json", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloads)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(RequestError, match=r"--model Qwen/Qwen2\.5-3B"):
        opened("Qwen/Qwen2.5-3B", "mote-qwen2.5-3b", asked=False)
    assert downloads.names == []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert opened("Qwen/Qwen2.5-3B", "mote-qwen2.5-3b", asked=False) == ("Qwen/Qwen2.5-3B", None)
    own = tmp_path / "own.yaml"
    own.write_text("")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    assert opened("Qwen/Qwen2.5-3B", str(own), asked=False) == ("Qwen/Qwen2.5-3B", None)


def test_the_hubs_own_bars_show_what_arrives_unless_quiet() -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        with hub._hub_bars(quiet=False):
            assert not are_progress_bars_disabled()
        assert are_progress_bars_disabled()
        enable_progress_bars()
        with hub._hub_bars(quiet=True):
            assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
    assert not are_progress_bars_disabled()
