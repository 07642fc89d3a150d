"""Every trainer of docs/training.md, run as written there, has the losses of our own train step."""

from __future__ import annotations

import ast
import builtins
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from datasets import disable_progress_bars
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import mote_quant
from mote_quant.data.schedule import Schedule
from mote_quant.data.source import Source
from mote_quant.errors import RequestError
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from tests import pico, processors
from tests.mixtures import TERNARY, context_for, logits, mixture, recipe, train_it

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
ROWS, SEED = 48, 0
SETTINGS = {"batch_size": 4, "gradient_accumulation": 2, "steps": 6, "learning_rate": 5e-3, "schedule": "linear"}
SETTINGS |= {"warmup": 0.0, "balance_loss": 0.01, "what": ["routed", "router"]}


def write_inputs() -> None:
    """A model and a training file, as the page names them."""
    pico.PICO["llama"]().save_pretrained("path/to/model")
    tokenizer = processors.tokenizer()
    # As Llama's does: the page has to say otherwise.
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained("path/to/model")
    drawn = random.Random(0)
    texts = ["".join(drawn.choices(processors.CHARACTERS, k=drawn.randrange(5, 14))) for _ in range(ROWS)]
    Path("train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def in_order(trainer: Trainer, dataset=None) -> SequentialSampler:
    return SequentialSampler(trainer.train_dataset)


def seeded(make):
    """`make` with random numbers that can be had again."""

    def made(*args, **kwargs):
        torch.manual_seed(1)
        return make(*args, **kwargs)

    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks of the page leave, having run one after the other."""
    disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr(Trainer, "_get_train_sampler", in_order)
        patch.setattr(peft, "get_peft_model", seeded(peft.get_peft_model))
        write_inputs()
        names: dict = {}
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(code, str(PAGE), "exec"), names)
        yield SimpleNamespace(**names, names=names, folder=Path.cwd())


def source_of(page) -> Source:
    """The page's rows in an order that our schedule makes theirs again."""
    drawn = list(Schedule(range(ROWS), ROWS, SEED))
    rows: list = [None] * ROWS
    for row, place in zip(page.rows, drawn, strict=True):
        rows[place] = row
    return Source("page", "0" * 64, rows, [], [], page.collate, "text")


def losses_of(model, context, **settings) -> list[float]:
    train_it(model, context, **(SETTINGS | settings))
    return [point["loss"] for point in context.notes["curve"]]


@pytest.fixture(scope="module")
def ours(page) -> list[float]:
    """The losses of our own train step."""
    model = mote_quant.apply(page.UPCYCLE, AutoModelForCausalLM.from_pretrained(page.folder / "path/to/model"))
    losses = losses_of(model, context_for(recipe(), pico.PICO["llama"](), source_of(page)))
    assert len(losses) == SETTINGS["steps"]
    assert losses[-1] < losses[0]
    return losses


def logged(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_hf_trainer_has_the_same_losses_to_the_bit(page, ours):
    assert logged(page.trainer) == ours


def test_a_router_loss_of_another_weight_would_be_seen(page, ours):
    model = mote_quant.apply(page.UPCYCLE, AutoModelForCausalLM.from_pretrained(page.folder / "path/to/model"))
    context = context_for(recipe(), pico.PICO["llama"](), source_of(page))
    assert losses_of(model, context, balance_loss=0.02) != pytest.approx(ours, rel=1e-5)


def test_trl_has_the_same_losses(page, ours):
    assert logged(page.sft) == pytest.approx(ours, rel=1e-5)


def test_no_row_learns_its_first_token_from_a_pad(page):
    batch = page.collate([page.rows[index] for index in range(4)])
    lengths = {len(page.rows[index]["input_ids"]) for index in range(4)}
    assert len(lengths) > 1, "or there is no padding"
    assert (batch["labels"][:, 0] != -100).all()
    assert (batch["attention_mask"][:, 0] == 1).all()


def test_blocks_that_say_so_run_with_before_and_after_alone(page):
    """The names that PEFT and "Seeing it" use are theirs, or made in the first two blocks."""
    blocks_of_page = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    first = {name for block in blocks_of_page[:2] for name in names_in(block, ast.Store)}
    for block in blocks_of_page[2:]:
        unknown = names_in(block, ast.Load) - names_in(block, ast.Store) - first - set(dir(builtins))
        assert not unknown, block


def names_in(code: str, context: type) -> set[str]:
    """Names that `code` binds (imports and functions too), or uses."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
    if context is ast.Store:
        names |= {alias.asname or alias.name for node in nodes if hasattr(node, "names") for alias in node.names}
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return names


def test_a_plain_loop_has_the_same_losses(page, ours):
    assert page.losses == pytest.approx(ours, rel=1e-5)


def test_peft_has_the_losses_of_a_train_step_with_the_same_adapters(page, ours):
    model = mote_quant.apply(page.UPCYCLE, AutoModelForCausalLM.from_pretrained(page.folder / "path/to/model"))
    context = context_for(recipe(), pico.PICO["llama"](), source_of(page))
    seeded(model.add_adapter)(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    found = losses_of(model, context, what=["routed", "router", "*.lora_*"])
    assert logged(page.tuner) != pytest.approx(ours, rel=1e-5)
    assert logged(page.tuner) == pytest.approx(found, rel=1e-4)


def test_a_trainer_resumes_adapters_with_the_experts_beside_them(page, tmp_path):
    def trained(steps: int, folder, resume: bool = False):
        model = page.upcycled()
        wrapped = peft.get_peft_model(model, page.lora)
        arguments = TrainingArguments(
            str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=4, lr_scheduler_type="constant"
        )
        Trainer(wrapped, arguments, data_collator=page.collate, train_dataset=page.rows).train(resume)
        return logits(wrapped.merge_and_unload())

    whole = trained(4, tmp_path / "whole")
    cut = trained(2, tmp_path / "cut")
    assert (whole - cut).abs().max() > 1e-4
    torch.testing.assert_close(trained(4, tmp_path / "cut", resume=True), whole, rtol=1e-4, atol=1e-5)


def test_figures_of_the_page(page):
    assert [entry["step"] for entry in page.figures.curve] == [2, 4]
    assert (page.folder / "runs" / "seen" / "metrics.jsonl").is_file()
    assert list((page.folder / "runs" / "seen" / "tensorboard" / "train").iterdir())


@pytest.mark.parametrize("name", ["trainer", "sft", "peft", "loop"])
def test_each_is_packed_and_comes_back(page, name):
    model = AutoModelForCausalLM.from_pretrained(page.folder / "out" / name)
    assert len([module for module in model.modules() if isinstance(module, PackedLinear)]) == 2 * (3 * 4 + 3 + 4)
    before = page.packed(mixture(TERNARY), str(page.folder / "out" / f"other-{name}"))
    assert (logits(model) - logits(before)).abs().max() > 1e-3
    assert (page.folder / "out" / name / "run" / "report.html").is_file()


def test_trainable_freezes_the_rest_and_survives_saving(tmp_path):
    model = mote_quant.trainable(mixture(TERNARY), balance_loss=0.3, z_loss=0.1)
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {n for n, _ in model.named_parameters() if ".experts." in n or n.endswith("mlp.gate.weight")}
    model.save_pretrained(tmp_path, latent=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {(block.balance_loss, block.z_loss) for block in blocks(again).values()} == {(0.3, 0.1)}


def test_what_cannot_be_trained_is_refused(page):
    with pytest.raises(RequestError, match="no mixture layers"):
        mote_quant.trainable(pico.PICO["llama"]())
    with pytest.raises(RequestError, match="keep_latents"):
        mote_quant.trainable(AutoModelForCausalLM.from_pretrained(page.folder / "out" / "loop"))
    with pytest.raises(RequestError, match="no mixture layers"):
        mote_quant.follow_loss(pico.PICO["llama"](), torch.zeros(()))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"what": "routed"}, "list of targets, as .*, not 'routed'"),
        ({"what": []}, "list of targets"),
        ({"balance_loss": -0.1}, "balance_loss is a number from 0, not -0.1"),
        ({"balance_loss": "0.1"}, "balance_loss is a number from 0, not '0.1'"),
        ({"z_loss": float("nan")}, "z_loss is a number from 0, not nan"),
    ],
)
def test_slips_that_would_train_something_else_are_refused(given, match):
    model = mixture(TERNARY)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(RequestError, match=match):
        mote_quant.trainable(model, **given)
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
