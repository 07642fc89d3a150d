"""Conversations: by the tokenizer's template, and only what the assistant says is learned."""

from __future__ import annotations

import json

import pytest
import torch

from mote_quant.data import chat, open_source
from mote_quant.data.source import IGNORED
from mote_quant.errors import DataError
from tests import pico, processors
from tests.data.rows import jsonl
from tests.processors import CHAT, album

ASK = "{% if add_generation_prompt %}it: {% endif %}"
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}it: {{ m.content }}</s>\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}" + ASK
)
MARKED = TURNS.replace(
    "it: {{ m.content }}</s>\n", "it: {% generation %}{{ m.content }}</s>{% endgeneration %}{{ '\\n' }}", 1
)
# Drops what was answered before the last question, as reasoning is dropped.
FORGETS = TURNS.replace("it: {{ m.content }}", "it: {% if loop.last %}{{ m.content }}{% else %}so{% endif %}", 1)
REFUSES = "{{ raise_exception('turns must alternate') }}"

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "me"},
    {"role": "user", "content": "and who else?"},
    {"role": "assistant", "content": "nobody"},
]


def speaker(template=TURNS):
    tokenizer = processors.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def opened(tmp_path, *rows, template=TURNS, max_length=200, processor=None):
    name = jsonl(tmp_path / "a.jsonl", rows)
    return open_source(name, processor=processor or speaker(template), max_length=max_length)


def read(tokenizer, ids):
    return tokenizer.decode([token for token in ids if token != IGNORED])


@pytest.mark.parametrize("template", [TURNS, MARKED], ids=["prefixes", "marks"])
def test_what_the_assistant_says_is_learned(tmp_path, template):
    source = opened(tmp_path, {"messages": TALK}, template=template)
    (sample,) = source.train
    whole = "system: be kind\nuser: who?\nit: me</s>\nuser: and who else?\nit: nobody</s>\n"
    tokenizer = speaker()
    assert read(tokenizer, sample["input_ids"]) == whole
    said = read(tokenizer, sample["labels"])
    # A mark can end before the line does; what is rendered for a turn ends with it.
    assert said == ("me</s>nobody</s>" if template is MARKED else "me</s>\nnobody</s>\n")
    assert [label for label in sample["labels"] if label not in (IGNORED,)] == [
        token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label != IGNORED
    ]
    batch = source.collate(source.train)
    assert batch["labels"].shape == batch["input_ids"].shape


def test_turns_of_sharegpt_are_the_same_conversation(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TALK]
    first, second = opened(tmp_path, {"messages": TALK}).train, opened(tmp_path, {"conversations": turns}).train
    assert first == second


def test_what_follows_the_last_answer_is_left_out(tmp_path):
    asked = [*TALK, {"role": "user", "content": "really?"}]
    assert opened(tmp_path, {"messages": asked}).train == opened(tmp_path, {"messages": TALK}).train


def test_content_in_parts_is_joined(tmp_path):
    parts = [{"type": "text", "text": "wh"}, {"type": "text", "text": "o?"}]
    turns = [TALK[0], {"role": "user", "content": parts}, TALK[2]]
    assert opened(tmp_path, {"messages": turns}).train == opened(tmp_path, {"messages": TALK[:3]}).train


def test_a_tokenizer_that_does_not_say_where_tokens_begin():
    class Slow:
        is_fast = False

        def __call__(self, text, **options):
            return {"input_ids": [ord(letter) for letter in text]}

    pieces = [chat.Piece("ab", False), chat.Piece("cd", True), chat.Piece("e", False)]
    assert chat.encode(pieces, Slow()) == ([97, 98, 99, 100, 101], [IGNORED, IGNORED, 99, 100, IGNORED])


def test_every_prompt_is_the_one_that_is_asked_later(tmp_path):
    (sample,) = opened(tmp_path, {"messages": TALK[:3]}).train
    tokenizer = speaker()
    asked = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=False)
    assert sample["input_ids"][: len(asked)] == asked
    assert set(sample["labels"][: len(asked)]) == {IGNORED}
    assert IGNORED not in sample["labels"][len(asked) :]


@pytest.mark.parametrize(
    ("row", "template", "says"),
    [
        ({"messages": TALK}, None, "needs a chat template, and the tokenizer has none"),
        ({"messages": TALK}, FORGETS, r"row 1: the chat template writes earlier turns differently"),
        ({"messages": TALK}, REFUSES, r"row 1: the chat template refuses it: turns must alternate"),
        ({"messages": TALK}, MARKED.replace("{% if m.role == 'assistant' %}", "{% if false %}"), "leave out what the"),
        ({"messages": TALK[:2]}, TURNS, "row 1: the assistant says nothing"),
        ({"messages": []}, TURNS, r"row 1: messages is \[\], a list of turns is needed"),
        ({"messages": "hello"}, TURNS, "row 1: messages is 'hello'"),
        ({"messages": [{"content": "who?"}]}, TURNS, "row 1, turn 1 does not say who speaks"),
        ({"messages": [{"role": "user"}]}, TURNS, "row 1, turn 1: content is None, text is needed"),
        ({"messages": [TALK[2] | {"content": "a" * 300}]}, TURNS, "row 1: 306 tokens, the limit is 200"),
    ],
)
def test_what_is_refused(tmp_path, row, template, says):
    with pytest.raises(DataError, match=says):
        opened(tmp_path, row, template=template)


def test_the_fingerprint_follows_the_template(tmp_path):
    prints = {opened(tmp_path, {"messages": TALK}, template=template).fingerprint for template in (TURNS, MARKED)}
    assert len(prints) == 2


SHOWN = {"type": "image"}


def talk(*question, answer="a cat"):
    return [{"role": "user", "content": list(question)}, {"role": "assistant", "content": answer}]


def said(text):
    return {"type": "text", "text": text}


SIGHT = CHAT.replace("{{ m.role }}: ", "{{ 'it' if m.role == 'assistant' else m.role }}: ")


def seeing(kind="llava"):
    return processors.PROCESSORS[kind](SIGHT)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_conversations_about_images_are_those_of_questions(tmp_path, kind):
    processor = seeing(kind)
    turns = talk(SHOWN, said("what?"))
    rows = [
        {"image": "0.png", "messages": turns},
        {"image": "0.png", "messages": talk(said("what?"))},
        {"messages": talk({"type": "image", "image": "0.png"}, said("what?"))},
    ]
    sources = [open_source(album(tmp_path, [row], f"{n}.jsonl"), processor=processor) for n, row in enumerate(rows)]
    batches = [source.collate(source.train) for source in sources]
    question = {"image": "0.png", "prompt": "what?", "completion": "a cat"}
    questions = open_source(album(tmp_path, [question]), processor=processor)
    prompt = questions.collate(questions.train)
    for batch in batches:
        assert all(torch.equal(batch[key], value) for key, value in batches[0].items())
        assert torch.equal(batch["pixel_values"], prompt["pixel_values"])
        assert read(processor.tokenizer, batch["labels"][0].tolist()) == "a cat"
        asked = int((prompt["labels"][0] == IGNORED).sum())
        assert torch.equal(batch["input_ids"][0, :asked], prompt["input_ids"][0, :asked])


def test_a_model_learns_from_conversations_about_images(tmp_path):
    turns = [*talk(SHOWN, said("what?")), *talk(said("sure?"), answer="yes")]
    rows = [{"image": f"{n}.png", "messages": turns} for n in range(3)]
    source = open_source(album(tmp_path, rows), processor=seeing())
    batch = source.collate(source.train)
    model = pico.PICO["llava"]()
    assert torch.isfinite(model(**batch).loss)
    assert read(seeing().tokenizer, batch["labels"][0].tolist()).count("yes") == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "0.png", "messages": talk(SHOWN, SHOWN, said("a"))}, r"row 1: there is room for 2 image\(s\)"),
        ({"image": "0.png", "messages": talk(said("a")) + talk(SHOWN)}, "an image stands after the first answer"),
        ({"image": "0.png", "messages": [{"role": "assistant", "content": "a"}]}, "nobody asks about the image"),
        ({"messages": talk(SHOWN, said("a"))}, "row 1: there is no image"),
        ({"messages": talk({"type": "image", "path": "9.png"})}, r"row 1: the image .*9\.png does not exist"),
    ],
)
def test_images_where_they_cannot_be(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        open_source(album(tmp_path, [row]), processor=seeing())


def test_images_for_a_tokenizer(tmp_path):
    rows = [{"messages": TALK[:3]}, {"messages": talk(SHOWN, said("a"))}]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"messages": talk(said("a"))} if not n else row) for n, row in enumerate(rows))
    )
    with pytest.raises(DataError, match="row 2 has an image in it, which needs a processor"):
        open_source(str(path), processor=speaker(), max_length=200)
