"""The model card and the way to the Hub: what is known and nothing else, all files, nobody's own card overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import mote_quant
from mote_quant.hf.card import MARK, render_card
from mote_quant.hf.saving import stored_bytes
from mote_quant.memory.ledger import weigh
from mote_quant.memory.units import human_bytes
from mote_quant.provenance import measured
from tests import pico
from tests.finished import BITS, finished
from tests.mixtures import logits, recipe
from tests.sources import source_for


def head(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """What `apply` wrote, of a model that came from the Hub."""
    folder = tmp_path_factory.mktemp("applied")
    model = pico.PICO["qwen2"]()
    model.name_or_path = "somebody/pico-qwen2"
    mote_quant.apply(recipe(BITS, train={}), model, data=source_for(model), output=folder)
    return folder


def test_its_head_is_what_the_hub_wants(packed, packed_vlm):
    card = ModelCard.load(packed / "README.md").data
    assert card.library_name == "mote-quant"
    assert card.pipeline_tag == "text-generation"
    assert card.tags == ["mote-quant", "mixture-of-experts", "quantized", "int4", "int8", "ternary"]
    assert not {"base_model", "license", "model-index"} & head(packed).keys()
    assert head(packed_vlm)["pipeline_tag"] == "image-text-to-text"


def test_its_bytes_are_the_ledgers_and_the_files(packed):
    text = (packed / "README.md").read_text()
    ledger = weigh(AutoModelForCausalLM.from_pretrained(packed))
    assert ledger.stored_bytes == stored_bytes(packed)
    for role, weight in ledger.roles.items():
        sizes = f"{human_bytes(weight.stored_bytes)} | {human_bytes(weight.resident_bytes)}"
        assert f"| {role} | {weight.parameters:,} | {weight.bits:.2f} | {sizes} |" in text
    assert f"{human_bytes(ledger.stored_bytes)} | {human_bytes(ledger.resident_bytes)}" in text
    assert f"no scales): {human_bytes(round(ledger.paper_gib['experts'] * 2**30))}." in text
    for row in (
        "| routed | ternary, 2bit | 24 |",
        "| shared | int4, rtn, groups of 16 | 6 |",
        "| attention | int8, rtn | 8 |",
    ):
        assert row in text


def test_how_to_load_it_is_how_it_is_loaded(packed, packed_vlm):
    for folder, auto in ((packed, AutoModelForCausalLM), (packed_vlm, AutoModelForImageTextToText)):
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        found: dict = {}
        exec(code.replace('"..."', repr(str(folder))), found)
        assert type(found["model"]) is type(auto.from_pretrained(folder))


def test_what_apply_wrote_says_how(applied):
    text, recipe_text = (applied / "README.md").read_text(), (applied / "run" / "recipe.yaml").read_text()
    assert f"```yaml\n{recipe_text.strip()}\n```" in text
    assert f"| mote-quant | {mote_quant.__version__} |" in text
    assert "| tokens seen in training | 72 |" in text
    assert "mixtures of 4 routed experts (1 a token) beside a shared one: 2." in text
    assert "run" not in head(applied)


def test_nothing_is_told_that_was_not_measured(packed):
    text = (packed / "README.md").read_text()
    assert "## Measured" not in text
    assert "Nothing was measured" in text
    model = AutoModelForCausalLM.from_pretrained(packed)
    model.hf_quantizer.quantization_config.provenance = {"measured": {"loss": 1.25}, "base_model": "a/b"}
    told = render_card(model)
    assert "| loss | 1.25 |" in told
    assert "Nothing was measured" not in told
    assert "base_model: a/b\nbase_model_relation: quantized" in told


def test_what_a_run_measured_is_what_its_report_says(applied):
    report = json.loads((applied / "run" / "report.json").read_text())
    found = measured(report["steps"])
    assert found["loss at the end of training"] == report["metrics"]["train_loss"]
    assert found["relative change of the outputs by up-cycling"] == report["preservation"]["relative"]
    outputs = {"kl": 0.5, "agreement": None}
    assert measured([{"outputs": outputs}]) == {"KL divergence from the model before quantizing, in nats": 0.5}
    assert measured([]) == measured([{"step": "upcycle"}]) == {}


def test_the_same_model_has_the_same_card_wherever_it_is_saved(packed, tmp_path):
    AutoModelForCausalLM.from_pretrained(packed).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "README.md").read_bytes() == (packed / "README.md").read_bytes()


def test_a_card_somebody_wrote_stays(tmp_path):
    model = finished("llama", BITS)
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n{MARK}\nold")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == render_card(model)


def test_a_finished_run_does_not_mind_a_card_that_was_edited(applied, tmp_path):
    (applied / "README.md").write_text("mine")
    model = pico.PICO["qwen2"]()
    mote_quant.apply(recipe(BITS, train={}), model, data=source_for(model), output=applied)
    assert (applied / "README.md").read_text() == "mine"


def test_latents_and_bodies_say_what_they_are(latent, packed, tmp_path):
    text = (latent / "README.md").read_text()
    assert "Trained layers are stored as the floats" in text
    assert "quantized" not in head(latent)["tags"]
    AutoModel.from_pretrained(packed).save_pretrained(tmp_path)
    assert "pipeline_tag" not in head(tmp_path)
    assert "AutoModel.from_pretrained" in (tmp_path / "README.md").read_text()


# --- to the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub in memory: `files` of the last commit, `calls`, and `card`, which it has already."""
    hub = SimpleNamespace(files={}, calls=[], card=None)

    def download(self, repo_id, name, revision=None):
        if hub.card is None:
            raise EntryNotFoundError("404")
        (tmp_path / "remote.md").write_text(hub.card)
        return str(tmp_path / "remote.md")

    def commit(self, repo_id, operations, **settings):
        hub.files = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}
        hub.calls.append(("commit", repo_id, settings))
        return SimpleNamespace(commit_url="https://hub/commit", pr_url=None)

    monkeypatch.setattr(
        HfApi,
        "create_repo",
        lambda self, repo_id, **k: (
            hub.calls.append(("repo", repo_id, k)),
            SimpleNamespace(repo_id=f"me/{repo_id.split('/')[-1]}"),
        )[1],
    )
    monkeypatch.setattr(HfApi, "create_branch", lambda self, repo_id, **k: hub.calls.append(("branch", repo_id, k)))
    monkeypatch.setattr(HfApi, "hf_hub_download", download)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    return hub


MODEL = {"config.json", "generation_config.json", "model.safetensors", "README.md"}


def test_pushing_a_model_sends_all_of_it_and_what_arrives_is_the_model(packed, hub, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(packed)
    model.push_to_hub("pico", private=True, commit_message="here", tags=["tiny"])
    assert hub.files.keys() == MODEL
    assert hub.calls[0] == ("repo", "pico", {"private": True, "exist_ok": True})
    kind, repo, settings = hub.calls[-1]
    assert (kind, repo, settings["commit_message"]) == ("commit", "me/pico", "here")
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.files.items():
        (arrived / name).write_bytes(content)
    assert logits(AutoModelForCausalLM.from_pretrained(arrived)).equal(logits(model))
    assert head(arrived)["tags"][-1] == "tiny"


def test_shards_a_branch_and_a_request(packed, hub):
    model = AutoModelForCausalLM.from_pretrained(packed)
    model.push_to_hub("pico", max_shard_size="20KB", revision="next", create_pr=True)
    assert len([name for name in hub.files if name.startswith("model-")]) > 1
    assert "model.safetensors.index.json" in hub.files
    assert ("branch", "me/pico", {"branch": "next", "exist_ok": True}) in hub.calls
    assert hub.calls[-1][2]["create_pr"] is True
    assert hub.calls[-1][2]["revision"] == "next"


def test_somebody_elses_card_on_the_hub_stays(packed, hub):
    model = AutoModelForCausalLM.from_pretrained(packed)
    hub.card = "---\nlicense: mit\n---\nMine."
    model.push_to_hub("pico")
    assert hub.files.keys() == MODEL - {"README.md"}
    hub.card = f"{MARK} an older one"
    model.push_to_hub("pico")
    assert hub.files.keys() == MODEL


def test_saving_and_pushing_sends_what_was_saved_and_nothing_beside_it(packed, hub, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(packed)
    (tmp_path / "pico").mkdir()
    (tmp_path / "pico" / "secret.txt").write_text("mine")
    model.save_pretrained(tmp_path / "pico", push_to_hub=True, commit_message="there", token="t")
    assert hub.files.keys() == MODEL
    assert hub.calls[0][1] == "pico"
    model.save_pretrained(tmp_path / "pico", push_to_hub=True, repo_id="other/name")
    assert hub.calls[2][1] == "other/name"


def test_latents_can_be_pushed_to_be_trained_on(latent, hub):
    model = AutoModelForCausalLM.from_pretrained(latent)
    model.push_to_hub("pico", latent=False)
    assert b'"latent": false' in hub.files["config.json"]
    model.push_to_hub("pico")
    assert b'"latent": true' in hub.files["config.json"]
