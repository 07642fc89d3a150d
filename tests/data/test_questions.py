"""Rows with images, through the processors of three families."""

from __future__ import annotations

import io
import json

import datasets
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, Idefics3Config, Idefics3ForConditionalGeneration

from mote_quant import apply
from mote_quant.data import open_source
from mote_quant.data.pictures import Picture
from mote_quant.data.source import IGNORED
from mote_quant.errors import DataError
from mote_quant.evaluate import evaluate
from tests import pico, processors
from tests.mixtures import recipe
from tests.processors import BEGIN, CHAT, END, IMAGE, PROCESSORS, album, png

ROWS = [
    {"images": ["0.png"], "prompt": "what is it?", "completion": "a cat"},
    {"images": ["1.png", "2.png"], "prompt": "are they the same?", "completion": "no"},
    {"images": ["2.png"], "prompt": "and now?", "completion": "two dogs"},
    {"images": ["3.png"], "prompt": "what is it?", "completion": "nothing"},
]
ONE_EACH = [{"image": f"{index}.png", "prompt": "what is it?", "completion": "a cat"} for index in range(4)]


def idefics3_model():
    """SmolVLM's kind of model, of a size for tests."""
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = pico.PICO["llama"]().config
    vision = tower | {"image_size": pico.IMAGE_SIDE, "patch_size": pico.PATCH_SIDE}
    config = Idefics3Config(
        vision_config=vision, text_config=text.to_dict(), image_token_id=pico.IMAGE_TOKEN, scale_factor=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Idefics3ForConditionalGeneration(config).eval()


FAMILIES = {
    "llava": (processors.llava, pico.PICO["llava"]),
    "qwen2_5_vl": (processors.qwen2_5_vl, pico.PICO["qwen2_5_vl"]),
    "idefics3": (processors.idefics3, idefics3_model),
}


@torch.no_grad()
def logits(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits


@pytest.mark.parametrize("chat", [None, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_shows_every_row_its_own_images(tmp_path, family, chat):
    build, build_model = FAMILIES[family]
    source = open_source(album(tmp_path, ROWS), processor=build(chat))
    model = build_model()
    together = source.collate(source.train)
    result = logits(model, together)
    alone = [source.collate([sample]) for sample in source.train]
    for row, batch in enumerate(alone):
        length = batch["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][row, :length], batch["input_ids"][0])
        assert int(together["attention_mask"][row].sum()) == length
        assert torch.allclose(result[row, :length], logits(model, batch)[0], atol=1e-4)
    # ... and another image would show.
    other = dict(alone[0]) | {name: alone[3][name] for name in alone[0] if name.startswith("pixel_values")}
    assert not torch.allclose(logits(model, alone[0]), logits(model, other), atol=1e-4)


@pytest.mark.parametrize("family", PROCESSORS)
def test_what_the_processor_returns_reaches_the_model_unchanged(tmp_path, family):
    processor = PROCESSORS[family]()
    source = open_source(album(tmp_path, ONE_EACH), processor=processor)
    images = [Image.open(tmp_path / f"{index}.png") for index in range(4)]
    expected = processor(text=[f"{IMAGE}what is it?"] * 4, images=images, padding=True, return_tensors="pt")
    batch = source.collate(source.train)
    assert set(batch) == set(expected) | {"labels"}
    for name in set(expected) - {"input_ids", "attention_mask", "mm_token_type_ids"}:
        assert torch.equal(batch[name], expected[name])
    if "mm_token_type_ids" in batch:
        assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == pico.IMAGE_TOKEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_completion_and_the_end(tmp_path, family):
    processor = FAMILIES[family][0]()
    source = open_source(album(tmp_path, ROWS), processor=processor)
    batch = source.collate(source.train)
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], ROWS, strict=True):
        learned = labels != IGNORED
        assert torch.equal(ids[learned], labels[learned])
        assert processor.tokenizer.decode(ids[learned]) == row["completion"] + END
        before = ids[: int(learned.nonzero()[0])]
        assert processor.tokenizer.decode(before).endswith(row["prompt"])


def prompts_of(source, processor):
    """The decoded prompts, every run of image tokens as one."""
    batch = source.collate(source.train)
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = processor.tokenizer.decode(ids[: int((labels != IGNORED).nonzero()[0])])
        while IMAGE * 2 in text:
            text = text.replace(IMAGE * 2, IMAGE)
        found.append(text)
    return found


def test_prompts_follow_the_chat_template_unless_they_place_their_images_themselves(tmp_path):
    own = {"image": "0.png", "prompt": f"look: {IMAGE}, what?", "completion": "x"}
    path = album(tmp_path, [ONE_EACH[0], own])
    plain, chat = processors.llava(), processors.llava(CHAT)
    own_prompt = f"look: {IMAGE}, what?"
    assert prompts_of(open_source(path, processor=plain), plain) == [f"{IMAGE}what is it?", own_prompt]
    assert prompts_of(open_source(path, processor=chat), chat) == [
        f"user: <vision>{IMAGE}</vision>what is it?it: ",
        own_prompt,
    ]


def test_a_text_is_said_to_the_images(tmp_path):
    rows = [{"image": "0.png", "text": "a cat"}, {"image": "1.png", "text": f"look: {IMAGE} a dog"}]
    processor = processors.qwen2_5_vl()
    source = open_source(album(tmp_path, rows), processor=processor)
    assert prompts_of(source, processor) == [IMAGE, f"look: {IMAGE}"]
    batch = source.collate(source.train)
    learned = [processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    assert learned == ["a cat" + END, " a dog" + END]


def same(first, second):
    one, two = first.collate(first.train), second.collate(second.train)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_questions_and_answers_by_other_names(tmp_path):
    named = [{"image": r["image"], "question": r["prompt"], "answer": r["completion"]} for r in ONE_EACH]
    processor = processors.llava()
    first = open_source(album(tmp_path, ONE_EACH), processor=processor)
    second = open_source(album(tmp_path, named, "named.jsonl"), processor=processor)
    assert same(first, second)


def table(rows, feature):
    """Rows as a `datasets` table with their images' bytes in it."""
    column = "images" if "images" in rows[0] else "image"
    kinds = {"prompt": datasets.Value("string"), "completion": datasets.Value("string"), column: feature}
    return datasets.Dataset.from_list(rows, features=datasets.Features(kinds))


def stored(tmp_path, name):
    return {"bytes": (tmp_path / name).read_bytes(), "path": name}


@pytest.mark.parametrize("form", ["path", "Image", "list of Image", "bytes"])
def test_parquet_with_paths_or_with_the_images_themselves(tmp_path, form):
    processor = processors.qwen2_5_vl()
    first = open_source(album(tmp_path, ONE_EACH), processor=processor)
    texts = [{name: row[name] for name in ("prompt", "completion")} for row in ONE_EACH]
    images = [stored(tmp_path, row["image"]) for row in ONE_EACH]
    rows = {
        "path": (datasets.Value("string"), [{"image": image["path"]} for image in images]),
        "Image": (datasets.Image(), [{"image": image} for image in images]),
        "list of Image": (datasets.List(datasets.Image()), [{"images": [image]} for image in images]),
        "bytes": (datasets.Value("binary"), [{"image": image["bytes"]} for image in images]),
    }
    feature, found = rows[form]
    made = table([text | image for text, image in zip(texts, found, strict=True)], feature)
    made.to_parquet(tmp_path / "a.parquet")
    assert same(first, open_source(str(tmp_path / "a.parquet"), processor=processor))


def test_a_data_set_of_datasets_with_an_image_feature(tmp_path, monkeypatch):
    processor = processors.llava()
    first = open_source(album(tmp_path, ONE_EACH), processor=processor)
    made = table([row | {"image": str(tmp_path / row["image"])} for row in ONE_EACH], datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: {"train": made}[split])
    assert same(first, open_source("somebody/pictures", processor=processor))


def test_the_fingerprint_follows_images_texts_and_processor(tmp_path):
    path = album(tmp_path, ONE_EACH)

    def fingerprint(processor=None, max_length=None):
        return open_source(path, processor=processor or processors.llava(), max_length=max_length).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    coarse = processors.llava()
    coarse.image_processor.image_mean = [0.1, 0.2, 0.3]
    others = [fingerprint(coarse), fingerprint(processors.llava(CHAT)), fingerprint(max_length=99)]
    (tmp_path / "2.png").write_bytes(png(99))
    others.append(fingerprint())
    album(tmp_path, [*ONE_EACH[:3], ONE_EACH[3] | {"completion": "a dog"}])
    others.append(fingerprint())
    assert len({first, *others}) == 6


def test_a_reloaded_processor_is_the_same_one(tmp_path):
    path = album(tmp_path, ONE_EACH)
    processors.llava(CHAT).save_pretrained(tmp_path / "model")
    reloaded = open_source(path, processor=AutoProcessor.from_pretrained(tmp_path / "model"))
    first = open_source(path, processor=processors.llava(CHAT))
    assert first.fingerprint == reloaded.fingerprint
    assert same(first, reloaded)


def adds_marks(processor):
    """As a Llama tokenizer that begins and ends every text."""
    tokenizer = processor.tokenizer
    tokenizer.bos_token = BEGIN
    marks = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BEGIN, END)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=None, special_tokens=marks
    )
    return processor


@pytest.mark.parametrize("chat", [None, BEGIN + CHAT], ids=["plain", "chat"])
def test_a_prompt_begins_once_and_does_not_end(tmp_path, chat):
    processor = adds_marks(processors.llava(chat))
    prompts = prompts_of(open_source(album(tmp_path, ONE_EACH), processor=processor), processor)
    assert all(prompt.count(BEGIN) == 1 and prompt.startswith(BEGIN) and END not in prompt for prompt in prompts)


def test_a_mask_with_more_axes_goes_on_as_it_ended(tmp_path):
    """As Mllama's over its images: [rows, tokens, ...]."""
    processor = processors.llava()
    pattern = torch.tensor([1, 2])

    class Crossed(type(processor)):
        def __call__(self, **given):
            encoded = super().__call__(**given)
            return encoded | {"cross": encoded["attention_mask"][..., None] * pattern}

    processor.__class__ = Crossed
    source = open_source(album(tmp_path, ROWS), processor=processor)
    batch = source.collate(source.train)
    assert torch.equal(batch["cross"], batch["attention_mask"][..., None] * pattern)


def test_a_row_by_itself_needs_no_padding_token(tmp_path):
    processor = processors.llava()
    processor.tokenizer.pad_token = None
    source = open_source(album(tmp_path, ROWS), processor=processor)
    assert bool(source.collate(source.train[:1])["attention_mask"].all())
    with pytest.raises(DataError, match=r"one by one only.*row 1.*padding"):
        source.collate(source.train)


def test_images_become_rgb_and_upright():
    stream = io.BytesIO()
    sideways = Image.Exif()
    sideways[0x0112] = 6
    Image.new("LA", (4, 2), (10, 255)).save(stream, "PNG", exif=sideways)
    image = Picture("here", stream.getvalue()).load()
    assert (image.mode, image.size) == ("RGB", (2, 4))


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_model_learns_from_images_and_is_measured_on_them(tmp_path, family):
    rows = [{"image": f"{i % 4}.png", "prompt": f"what is {i}?", "completion": "abcd"[i % 4]} for i in range(40)]
    path, processor = album(tmp_path, rows), PROCESSORS[family]()
    model = pico.PICO[family]()
    apply(recipe(train={"steps": 30, "learning_rate": 1e-2, "data": path}), model, processor=processor)
    source = open_source(path, processor=processor)
    before, after = (evaluate(m, source, split="train", limit=8) for m in (pico.PICO[family](), model))
    assert after["loss"] < before["loss"] - 1.0
    assert 0.0 <= after["accuracy"] <= 1.0


@pytest.mark.parametrize("family", PROCESSORS)
def test_a_vision_language_model_learns_from_text_alone(tmp_path, family):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "words and more words, "}) for _ in range(40)))
    model = pico.PICO[family]()
    settings = {"steps": 20, "learning_rate": 1e-2, "data": str(path), "max_length": 16}
    apply(recipe(train=settings), model, processor=PROCESSORS[family]())
    source = open_source(str(path), processor=PROCESSORS[family](), max_length=16)
    assert set(source.collate(source.train[:1])) == {"input_ids", "attention_mask", "labels"}
    before, after = (evaluate(m, source, split="train", limit=8) for m in (pico.PICO[family](), model))
    assert after["loss"] < before["loss"] - 1.0
