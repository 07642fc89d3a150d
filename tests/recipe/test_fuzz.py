"""Whatever comes in, out comes a Recipe or a RecipeError; and what is dumped loads back equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mote_quant.errors import RecipeError
from mote_quant.recipe import Recipe, dump, load, shipped
from mote_quant.recipe.schema import FloatName, IntegerName

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in shipped().items()}
VALUES = [yaml.safe_load(text) for text in TEXTS.values()]
FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

Result = Recipe | RecipeError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Beside the shipped recipes' bases, so that `extends` is followed.
    monkeypatch.chdir(tmp_path)
    return tmp_path / "x.yaml"


def attempt(source: Any, overrides: tuple[str, ...] = ()) -> Result:
    try:
        return load(source, overrides)
    except RecipeError as error:
        result = error
    assert result.problems
    for line in result.problems:
        assert "\n" not in line
        assert line == line.strip() != ""
        assert not any(leak in line for leak in ("pydantic", "Input should", "input_value", "https://", "object at 0x"))
    return result


# --- random structures -------------------------------------------------------------------------------------------

WORDS = """
    name description model seed bits pipeline extends upcycle train quantize calibration data steps what format
    group_size method layers experts top_k shared mix combine routed router ternary int4
"""
words = st.sampled_from(WORDS.split())
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    words,
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["1e-3", "1e999", "re:(", "010", "*", ".", 10**400, -(10**400), b"bytes", 1j, object(), {1, 2}]),
)
structures = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | scalars.filter(lambda value: not isinstance(value, set)), inner, max_size=5)
    ),
    max_leaves=25,
)


@given(structures)
@settings(deadline=None)
def test_random_structures(value: Any) -> None:
    attempt(value if isinstance(value, dict) else {"name": "x", "bits": value, "pipeline": [{"upcycle": {}}]})
    attempt({"name": "x", "pipeline": value})
    attempt({"name": "x", "pipeline": [{"train": value}, {"quantize": value}, {"upcycle": value}]})


# --- mutations of good recipes -----------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        below = list(enumerate(value))
    return [found for key, item in below for found in ((*path, key), *places(item, (*path, key)))]


def delete(holder: Any, key: Any, draw: Callable[[Any], Any]) -> None:
    del holder[key]


def retype(holder: Any, key: Any, draw: Callable[[Any], Any]) -> None:
    holder[key] = draw(structures)


def rename(holder: Any, key: Any, draw: Callable[[Any], Any]) -> None:
    if isinstance(holder, dict):
        holder[draw(words | st.text(max_size=4)) if draw(st.booleans()) else f"{key}s"] = holder.pop(key)


def repeat(holder: Any, key: Any, draw: Callable[[Any], Any]) -> None:
    if isinstance(holder, list):
        holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))


@given(st.data())
@settings(deadline=None)
def test_mutated_mappings(data: st.DataObject) -> None:
    recipe = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(recipe) or [()]))
        assume(path)
        holder = recipe
        for key in path[:-1]:
            holder = holder[key]
        data.draw(st.sampled_from([delete, retype, rename, repeat]))(holder, path[-1], data.draw)
    attempt(recipe)


snippets = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["\t", "\n", ": ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ", "!!set ", "? ", "|", "%", "'", '"']
    ),
    st.sampled_from(
        ["---\n", "\x00", "\ud800", "\ufeff", "010", "1:30", "=", "\\x", "yes", "~", "2026-13-45", "1" * 5000]
    ),
)


@given(name=st.sampled_from(sorted(TEXTS)), cut=st.integers(0, 2000), drop=st.integers(0, 30), snippet=snippets)
@FILE
def test_mutated_texts(file: Path, name: str, cut: int, drop: int, snippet: str) -> None:
    text = TEXTS[name]
    at = cut % len(text)
    file.write_bytes((text[:at] + snippet + text[at + drop :]).encode("utf-8", "surrogatepass"))
    attempt(file)


@given(st.binary(max_size=200))
@FILE
def test_random_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert isinstance(attempt(file), RecipeError)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?, \n\t0.e<=~", max_size=60))
@example("? ?")
@example("!!map x")
@example("!!seq {}")
@example("!!str [a]")
@example("a: =")
@example("<<: 3")
@example("<<: [3, {a: 1}]")
@example("&a {a: *a}")
@example("&a [*a]")
@example("a: !!float")
@example("a: !!timestamp x")
@example("a: !!bool x")
@example("a: !!binary x")
@example("%YAML 99999999999999999999.1\n---\na: 1")
@example("{" * 3000)
@FILE
def test_random_yaml(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    assert isinstance(attempt(file), RecipeError)


@given(
    st.one_of(
        st.text(max_size=20),
        st.text(alphabet="bits.routed0123\"'[]=:{}-", max_size=20),
        st.builds(
            "{}={}".format, st.lists(words | st.integers(-1, 9).map(str), max_size=5).map(".".join), st.text(max_size=8)
        ),
    )
)
@settings(deadline=None)
def test_random_overrides(override: str) -> None:
    attempt("moe-digits-int3", (override,))


# --- round trip --------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
positive = st.integers(1, 10**9)
real = st.floats(0, 1e6)
fraction = st.floats(0, 1)


def some(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required or {}, optional=optional)


def choice(*options: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(options)


floats = choice(*FloatName.__args__)  # type: ignore[attr-defined]
integers = some(
    {"format": choice(*IntegerName.__args__)},  # type: ignore[attr-defined]
    group_size=positive | st.just(-1),
    symmetric=st.booleans(),
    scale_dtype=floats,
    method=choice("rtn", "gptq", "qat"),
)
binary = some(
    {"format": st.just("binary")}, granularity=choice("tensor", "channel"), scales=choice("absmean", "learned")
)
ternary = some(
    {"format": st.just("ternary")},
    granularity=choice("tensor", "channel"),
    packing=choice("2bit", "base3"),
    activations=choice("int8", "none"),
    scale_dtype=choice("float32", "float16"),
) | some({"format": st.just("ternary"), "granularity": st.just("group")}, group_size=positive)
target = (
    choice("routed", "attention", "router", "Linear", "model.layers.*", "re:.*lm_head$", "yes", "1e3", "a: b", "ünï")
    | text
)
upcycles = st.one_of(
    some(
        {"combine": choice("additive", "zero_init")},
        layers=choice("all", "first_half") | st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
        experts=st.integers(4, 64),
        top_k=st.integers(1, 4),
        init=choice("copy", "random"),
        noise=real,
        normalize_gates=st.booleans() | st.none(),
        router_std=real,
    ),
    some({"combine": st.just("convex")}, mix=fraction),
    some({"shared": st.just("none")}, combine=st.just("additive")),
)
trains = some(
    {"what": st.lists(target, min_size=1, max_size=3, unique=True), "data": text, "steps": positive},
    learning_rate=st.floats(0, 1e6, exclude_min=True),
    schedule=choice("cosine", "linear", "constant"),
    warmup=fraction,
    balance_loss=real,
    precision=choice("float32", "bfloat16"),
    max_length=st.integers(2, 10**6) | st.none(),
)
quantizes = some(
    {"calibration": some({"data": text}, samples=positive, max_length=st.integers(2, 10**6))},
    unhit=choice("fallback_rtn", "error"),
)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(
        st.dictionaries(
            target, floats | integers | ternary | binary | floats.map(lambda name: {"format": name}), max_size=4
        )
    )
    pipeline = [{"upcycle": draw(upcycles)}, *({"train": each} for each in draw(st.lists(trains, max_size=2)))]
    if bits:
        pipeline.append({"quantize": draw(quantizes)})
    rest = draw(some(description=st.just("") | text, model=text, seed=st.integers(0, 2**32 - 1)))
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)),
        **rest,
        "bits": bits,
        "pipeline": pipeline,
    }


@given(recipes())
@FILE
def test_what_is_dumped_loads_back_equal(file: Path, values: dict[str, Any]) -> None:
    recipe = attempt(values)
    assume(isinstance(recipe, Recipe))
    assert isinstance(recipe, Recipe)
    file.write_text(dump(recipe), encoding="utf-8")
    again = load(file)
    assert again == recipe
    assert list(again.bits) == list(recipe.bits)
    assert dump(again) == dump(recipe)
    assert load(recipe, ["seed=1"]) == load(file, ["seed=1"])
