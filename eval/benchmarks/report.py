"""bench.md: the table of the figures to reach, then what is behind it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.benchmarks.matmul import MATMUL
from eval.benchmarks.rows import Row
from eval.benchmarks.targets import AMX_OFF, AT_MOST, TARGETS, Target

Machine = Mapping[str, Any]
NOT_MEASURED = "not measured"
HEADER = ("id", "what", "target", "reached", "spread", "met", "limit here")
WIDTHS = (32, 58, 15, 13, 16, 7, 10)
"""Of the columns, where they are printed."""


def table(rows: Sequence[Row], machine: Machine, amx: bool) -> list[list[str]]:
    """The figures to reach: id, what, target, reached, spread, met, the limit of the machine."""
    asked = [target for target in TARGETS if target.bound(amx) is not None or _found(target, rows)]
    return [_line(target, rows, machine, amx) for target in asked]


def _line(target: Target, rows: Sequence[Row], machine: Machine, amx: bool) -> list[str]:
    bound, found = target.bound(amx), _found(target, rows)
    sign = "≤" if target.id in AT_MOST else "≥"
    asked = "not asked here" if bound is None else f"{sign} {bound:g}x"
    if not found:
        return [target.id, target.what, asked, NOT_MEASURED, "", "", ""]
    row = _headline(found)
    met = "" if bound is None else "yes" if target.met(row.ratio, bound) else "**no**"
    spread = f"{row.ratio_spread[0]:.2f} to {row.ratio_spread[1]:.2f}"
    return [target.id, target.what, asked, f"{row.ratio:.2f}x", spread, met, _limit(found, machine)]


def _found(target: Target, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.id == target.id and _fits(target, row)]


def _fits(target: Target, row: Row) -> bool:
    return all(getattr(row, key) == value for key, value in target.where.items())


def _headline(rows: Sequence[Row]) -> Row:
    """The summary, or the only row there is."""
    return next((row for row in rows if not row.shape), rows[-1])


def _limit(rows: Sequence[Row], machine: Machine) -> str:
    """The ratio if ours took no longer than reading at the measured bandwidth, or multiplying at the int8 peak."""
    known = [row for row in rows if row.read_bytes and row.peer_s]
    single = [row for row in known if row.shape] or known
    if not single:
        return ""
    ratios = [(row.peer_s or 0.0) / _ideal_seconds(row, machine) for row in single]
    return f"{math.exp(statistics.fmean(map(math.log, ratios))):.1f}x"


def _ideal_seconds(row: Row, machine: Machine) -> float:
    peak: float | None = machine["int8_peak_gop_per_s"]
    # The peak is that of VNNI: it says nothing of AMX.
    bound = machine["level"] != "amx" or row.ours == AMX_OFF
    multiplying = row.operations / (row.threads * peak) if bound and peak else 0.0
    reading: float = row.read_bytes / machine["read_gb_per_s"][str(row.threads)]
    return max(reading, multiplying) / 1e9


def markdown(rows: Sequence[Row], machine: Machine, amx: bool) -> str:
    """The whole page."""
    return "\n".join([*_page(rows, machine, amx), ""])


def _page(rows: Sequence[Row], machine: Machine, amx: bool) -> Iterator[str]:
    yield "# Benchmarks\n"
    yield "Written by `make bench`; what the columns and ids mean is in `docs/benchmarks.md`.\n"
    yield from _machine(machine)
    yield "## Figures to reach\n"
    yield from _markdown_table(HEADER, table(rows, machine, amx))
    yield from _others(rows)
    yield from _products(rows)


def _machine(machine: Machine) -> Iterator[str]:
    reads, versions = machine["read_gb_per_s"], machine["versions"]
    features = ", ".join(machine["cpu_features"])
    yield f"- {machine['cpu']}, {machine['cores']} cores: {features}; ours: {machine['level']}"
    yield f"- reads {', '.join(f'{rate:.1f} GB/s by {threads} thread(s)' for threads, rate in reads.items())}"
    peaks = ((kind, machine[f"{kind}_peak_gop_per_s"]) for kind in ("int8", "bf16"))
    limits = [f"{kind} {'not known' if peak is None else f'{peak:.0f} Gop/s'}" for kind, peak in peaks]
    yield f"- dot products of one thread, from registers: {', '.join(limits)}"
    yield f"- {', '.join(f'{name} {version}' for name, version in versions.items())}; ggml: {_ggml(machine['ggml'])}"
    for what, why in machine.get("skipped", {}).items():
        yield f"- skipped: {what}: {why}"
    yield "\n![roofline](bench-roofline.png)\n"


def _ggml(found: Any) -> str:
    return found if isinstance(found, str) else f"{found['version']} ({', '.join(found['built_for'])})"


def _others(rows: Sequence[Row]) -> Iterator[str]:
    """Figures nobody asked for: one line for what differs in more than the shape."""
    named = {target.id for target in TARGETS}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.id not in named and row.id != MATMUL:
            groups.setdefault((row.id, row.ours, row.tokens, row.dtype), []).append(row)
    if groups:
        yield "\n## Other figures\n"
        header = ["id", "ours", "peer", "tokens", "ratio", "spread", ""]
        yield from _markdown_table(header, [_other(_headline(group)) for group in groups.values()])


def _other(row: Row) -> list[str]:
    spread = f"{row.ratio_spread[0]:.2f} to {row.ratio_spread[1]:.2f}"
    return [row.id, row.ours, row.peer, str(row.tokens or ""), f"{row.ratio:.2f}x", spread, row.note]


def _products(rows: Sequence[Row]) -> Iterator[str]:
    """Milliseconds of every kernel by shape, one table for each number of tokens."""
    products = [row for row in rows if row.id == MATMUL]
    shapes = list(dict.fromkeys(row.shape for row in products))
    for tokens in dict.fromkeys(row.tokens for row in products):
        here = [row for row in products if row.tokens == tokens]
        times = {(row.ours, row.shape): row.ours_s for row in here} | {(r.peer, r.shape): r.peer_s for r in here}
        names = sorted(dict.fromkeys(name for name, _ in times), key=lambda name: _mean(times, name))
        yield f"\n## One product at {tokens} token{'s' if tokens != 1 else ''}: ms, one thread\n"
        header = ["", *("x".join(map(str, shape)) for shape in shapes)]
        cells = [[name, *(_ms(times.get((name, shape))) for shape in shapes)] for name in names]
        yield from _markdown_table(header, cells)


def _mean(times: Mapping[tuple[str, Any], float | None], name: str) -> float:
    return statistics.fmean(math.log(seconds) for (who, _), seconds in times.items() if who == name and seconds)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)
