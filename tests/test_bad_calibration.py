"""Data that cannot be calibrated or trained with: one clear error each, before anything is done to the model."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

from mote_quant import apply
from mote_quant.data import open_source
from mote_quant.data.calibration import calibration_batches
from mote_quant.data.opener import opener_for
from mote_quant.data.source import Source
from mote_quant.errors import DataError
from mote_quant.fingerprint import weights_hash
from tests import pico, processors
from tests.mixtures import TERNARY, recipe
from tests.processors import IMAGE, album, png

GOOD = {"image": "0.png", "prompt": "what is it?", "completion": "a cat"}


def refused(tmp_path, rows, says, processor=None, **options):
    """Opening `rows` fails and says `says`, with the name of the file."""
    path = album(tmp_path, rows)
    with pytest.raises(DataError, match=says) as caught:
        shown(path, processor or processors.llava(), **options)
    assert path in str(caught.value)


def shown(path, processor, **options):
    source = open_source(path, processor=processor, **options)
    return source.collate(source.train)


ROWS = {
    "a missing image": (GOOD | {"image": "cat.png"}, r"row 2: the image \S*cat\.png does not exist"),
    "a folder": (GOOD | {"image": "."}, r"row 2: the image \S* cannot be read: .*directory"),
    "a name with a zero": (GOOD | {"image": "a\0b"}, r"row 2: the image .* cannot be read"),
    "an address": (GOOD | {"image": "https://example.org/a.png"}, r"row 2: the image \S*a\.png does not exist"),
    "no image": (GOOD | {"image": None}, "row 2: there is no image, though other rows have one"),
    "text as an image": (GOOD | {"image": "album.jsonl"}, r"row 2: .*album\.jsonl is of no image format"),
    "an empty prompt": (GOOD | {"prompt": " \n"}, "row 2: prompt is empty"),
    "an empty completion": (GOOD | {"completion": ""}, "row 2: completion is empty"),
    "no prompt": (GOOD | {"prompt": None}, "row 2: prompt is None, text is needed"),
    "a place for an image in the answer": (GOOD | {"completion": f"{IMAGE}!"}, "row 2: <image> stands in the answer"),
    "two places for one image": (GOOD | {"prompt": f"{IMAGE}{IMAGE}?"}, "row 2: <image> stands 2 times.*1 image"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row(tmp_path, case):
    row, says = ROWS[case]
    refused(tmp_path, [GOOD, row], says)


def test_a_row_without_any_image_in_its_list(tmp_path):
    rows = [{"images": ["0.png"], "text": "a"}, {"images": [], "text": "b"}]
    refused(tmp_path, rows, "row 2: there is no image")


def test_an_image_that_is_a_list_of_numbers(tmp_path):
    datasets.Dataset.from_list([GOOD | {"image": [[1, 2], [3, 4]]}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1: the image is a list; needed are a path or the bytes"):
        open_source(str(tmp_path / "a.parquet"), processor=processors.llava())


def test_an_image_with_a_bit_flipped_is_found_on_opening(tmp_path):
    path = album(tmp_path, [GOOD])
    broken = bytearray(png(0))
    broken[60] ^= 1
    (tmp_path / "0.png").write_bytes(broken)
    with pytest.raises(DataError, match=r"row 1: the image \S*0\.png is damaged"):
        open_source(path, processor=processors.llava())


def test_a_photo_cut_short_is_found_when_it_is_shown(tmp_path):
    path = album(tmp_path, [GOOD | {"image": "a.jpg"}])
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    source = open_source(path, processor=processors.llava())
    with pytest.raises(DataError, match=r"row 1: the image \S*a\.jpg is damaged: .*truncated"):
        source.collate(source.train)


def test_an_image_deleted_meanwhile(tmp_path):
    source = open_source(album(tmp_path, [GOOD]), processor=processors.llava())
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"row 1: the image \S*0\.png does not exist"):
        source.collate(source.train)


def test_images_with_a_bare_tokenizer(tmp_path):
    says = "needs a processor that takes images.*Tokenizer.*the model's own processor"
    refused(tmp_path, [GOOD], says, processor=processors.tokenizer())


def test_images_without_any_processor(tmp_path):
    with pytest.raises(DataError, match=r"needs the model's tokenizer, or its processor for images"):
        open_source(album(tmp_path, [GOOD]))


def test_images_beside_other_columns(tmp_path):
    refused(tmp_path, [{"image": "0.png", "label": 3}], "columns image, label; needed are text, or prompt and compl")


@pytest.mark.parametrize("limit", [12, None])
def test_images_with_too_many_tokens(tmp_path, limit):
    """4 tokens (16 for the large one) for the image, 11 for the question, 5 for the answer, one for the end."""
    rows = [GOOD, GOOD | {"image": "2.png"}]
    if limit is not None:
        refused(
            tmp_path, rows, "row 1: 21 tokens with its images, the limit is 12", processors.qwen2_5_vl(), max_length=12
        )
        return
    (tmp_path / "large").mkdir()
    path = album(tmp_path / "large", [GOOD])
    (tmp_path / "large" / "0.png").write_bytes(png(0, 64, 64))
    small = pico.PICO["qwen2_5_vl"](max_position_embeddings=32)
    source = opener_for(small, processor=processors.qwen2_5_vl(), data=path)("", None)
    with pytest.raises(DataError, match="a sample has 33 tokens, this model takes 32"):
        source.collate(source.train)


def test_a_processor_that_refuses_an_image_is_quoted(tmp_path):
    path = album(tmp_path, [GOOD, GOOD | {"image": "thin.png"}])
    (tmp_path / "thin.png").write_bytes(png(0, 1000, 2))
    source = open_source(path, processor=processors.qwen2_5_vl())
    source.collate(source.train[:1])
    with pytest.raises(DataError, match=r"row 2: ImagesOnly refuses it: .*aspect ratio"):
        source.collate(source.train)


def test_a_processor_that_cannot_say_where_images_go(tmp_path):
    processor = processors.llava()
    processor.image_token = None
    refused(
        tmp_path, [GOOD], "a processor that says where images go; this LlavaProcessor has no chat template", processor
    )


@pytest.mark.parametrize("kind", ["tokenizer", "processor"])
def test_images_for_a_text_only_model(tmp_path, kind):
    model = pico.PICO["llama"]()
    before = weights_hash(model)
    processor = {"tokenizer": processors.tokenizer, "processor": processors.llava}[kind]()
    says = {"tokenizer": "takes text only", "processor": "LlamaForCausalLM takes text only"}[kind]
    with pytest.raises(DataError, match=says):
        apply(recipe(TERNARY, train={"data": album(tmp_path, [GOOD])}), model, processor=processor)
    assert weights_hash(model) == before


def test_nothing_to_calibrate_with():
    with pytest.raises(DataError, match="empty has no samples to calibrate with"):
        calibration_batches(Source("empty", "", [], [], [], lambda samples: {}, "text"), 8, 4, 0)


def test_a_data_set_without_rows(monkeypatch):
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": [], "text": []}, features=kinds)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: made)
    with pytest.raises(DataError, match="somebody/nothing has no rows"):
        open_source("somebody/nothing", processor=processors.llava())


def test_some_rows_with_and_some_without_a_column(tmp_path):
    path = tmp_path / "a.jsonl"
    album(tmp_path, [GOOD])
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({"prompt": "what?", "completion": "that"}))
    with pytest.raises(DataError, match="row 2: there is no image"):
        open_source(str(path), processor=processors.llava())
