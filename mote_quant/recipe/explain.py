"""What pydantic found, in plain words. One table, by the type of its finding."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mote_quant.recipe.near import near
from mote_quant.recipe.wording import WORDS_READ_AS_BOOLEANS, describe, number

Context = Mapping[str, Any]

SYNONYMS = {
    "alpha": "weight",
    "aux_loss": "balance_loss",
    "bit": "format",
    "bits": "format",
    "dataset": "data",
    "dtype": "format",
    "grad_accum": "gradient_accumulation",
    "group": "group_size",
    "k": "top_k",
    "lr": "learning_rate",
    "max_steps": "steps",
    "modules": "what",
    "num_experts": "experts",
    "num_samples": "samples",
    "targets": "what",
    "torch_compile": "compile",
    "type": "format",
}
"""Names that other tools give to the same things."""


def explain(kind: str, context: Context, value: Any) -> str:
    """The message for one finding: pydantic's type and context, and the value that was found."""
    return MESSAGES.get(kind, _impossible)(context, value)


def unknown_key(key: str, free: Sequence[str], known: Sequence[str]) -> str:
    """The message for a key that is none of `known`; one that is still `free` was more likely meant."""
    meant = meant_key(key, free) or meant_key(key, known)
    return "unknown key; " + (f"did you mean {meant}?" if meant else f"the keys here are {', '.join(known)}")


def meant_key(key: str, free: Sequence[str]) -> str | None:
    """Which of the keys `free` somebody who wrote `key` probably meant."""
    if SYNONYMS.get(key.casefold()) in free:
        return SYNONYMS[key.casefold()]
    return next(iter(near(key, free, 1)), None)


def _expected(what: str, hint: str = "") -> Callable[[Context, Any], str]:
    """`expected <what>, not <value>`, with a hint for text."""

    def message(context: Context, value: Any) -> str:
        return f"expected {what}, not {describe(value)}{_why_boolean(value)}{hint if isinstance(value, str) else ''}"

    return message


def _text(context: Context, value: Any) -> str:
    scalar = not (value is None or isinstance(value, bool | dict | list))
    quote = "; quote it if it is meant as text" if scalar else ""
    return f"expected text, not {describe(value)}{_why_boolean(value)}{quote}"


def _option(context: Context, value: Any) -> str:
    options = re.findall(r"'([^']*)'", context["expected"])
    expected = f"expected {'one of ' * (len(options) > 1)}{', '.join(options)}, not {describe(value)}"
    found = near(value, options, 1) if isinstance(value, str) else []
    return f"{expected}{_why_boolean(value)}" + (f"; did you mean {found[0]}?" if found else "")


def _bound(relation: str, key: str) -> Callable[[Context, Any], str]:
    return lambda context, value: f"must be {relation} {number(context[key])}, not {number(value)}"


def _in_words(context: Context, value: Any) -> str:
    return str(context["text"])


def _impossible(context: Context, value: Any) -> str:
    return f"cannot be {describe(value)}"


def _why_boolean(value: Any) -> str:
    return f" ({WORDS_READ_AS_BOOLEANS})" if isinstance(value, bool) else ""


_NAME = "a name of letters, digits, dots, dashes and underscores that starts with a letter or digit"

MESSAGES: dict[str, Callable[[Context, Any], str]] = {
    "bool_type": _expected("true or false"),
    "dict_type": _expected("a mapping (key: value)"),
    "finite_number": _expected("a finite number"),
    "float_type": _expected("a number"),
    "greater_than": _bound("more than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "int_type": _expected("a whole number"),
    "less_than_equal": _bound("at most", "le"),
    "list_type": _expected("a list", hint="; put it in brackets: [...]"),
    "literal_error": _option,
    "missing": lambda context, value: "missing key",
    "mistake": _in_words,
    "model_type": _expected("a mapping (key: value)"),
    "string_pattern_mismatch": _expected(_NAME),
    "string_too_short": lambda context, value: "must not be empty",
    "string_type": _text,
    "too_short": lambda context, value: "is empty; give at least one entry",
}
