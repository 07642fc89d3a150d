"""Every example of docs/data.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mote_quant import apply
from mote_quant.data import open_source
from tests import pico, processors
from tests.data.rows import jsonl, texts, words

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
EXAMPLES = {kind: re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("yaml", "python", "jinja")}


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In a folder with the files that the page speaks of."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in words(40, 15)]
    jsonl(tmp_path / "chats.jsonl", ({"messages": conversation} for conversation in turns))
    jsonl(tmp_path / "stories.jsonl", texts(400, 30))
    monkeypatch.chdir(tmp_path)
    made = processors.tokenizer()
    [made.chat_template] = EXAMPLES["jinja"]
    return made


@pytest.mark.parametrize("number", range(len(EXAMPLES["yaml"])))
def test_train_steps(tokenizer: Any, number: int) -> None:
    step = yaml.safe_load(EXAMPLES["yaml"][number])
    apply({"name": "page", "pipeline": [{"upcycle": {}}, {"train": step}]}, pico.PICO["llama"](), processor=tokenizer)


def test_python(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for example in EXAMPLES["python"]:
        exec(example, {"tokenizer": tokenizer})
    assert "torch.Size([2," in capsys.readouterr().out


def test_the_template_of_the_page_marks_the_end_of_each_turn(tokenizer: Any) -> None:
    [sample] = open_source("chats.jsonl", processor=tokenizer, max_length=64).train[:1]
    learned = [token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label >= 0]
    assert tokenizer.eos_token_id in learned
    assert tokenizer.decode(sample["input_ids"]).count(tokenizer.eos_token) == 2


def test_there_are_examples() -> None:
    assert len(EXAMPLES["yaml"]) == 5
