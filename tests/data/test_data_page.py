"""Every example of docs/data.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mote_quant import apply
from tests import pico, processors
from tests.data.rows import jsonl, texts, words

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
EXAMPLES = {kind: re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("yaml", "python")}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In a folder with the files that the page speaks of."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in words(40, 20)]
    jsonl(tmp_path / "chats.jsonl", ({"messages": conversation} for conversation in turns))
    jsonl(tmp_path / "stories.jsonl", texts(400, 30))
    monkeypatch.chdir(tmp_path)
    made = processors.tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("number", range(len(EXAMPLES["yaml"])))
def test_train_steps(tokenizer: Any, number: int) -> None:
    step = yaml.safe_load(EXAMPLES["yaml"][number])
    apply({"name": "page", "pipeline": [{"upcycle": {}}, {"train": step}]}, pico.PICO["llama"](), processor=tokenizer)


def test_python(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for example in EXAMPLES["python"]:
        exec(example, {"tokenizer": tokenizer})
    assert "torch.Size([2," in capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(EXAMPLES["yaml"]) == 5
