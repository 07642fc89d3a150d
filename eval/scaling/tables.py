"""The tables of docs/scaling.md, by name: what stands between the page's marks is written from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.scaling import traffic
from eval.scaling.cluster import EIGHT_NODES, ONE_NODE, Cluster
from eval.scaling.simulate import step_seconds
from eval.scaling.traffic import Step
from eval.scaling.workload import LENGTH, SAMPLES, Workload
from mote_quant.estimate.imagined import Unit
from mote_quant.parallel.sharings import Sharding

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
RESULTS = Path(__file__).parents[1] / "results" / "scaling.json"
MODELS = "Qwen2.5-3B", "Qwen2.5-7B"
KINDS = ("float32", "adamw_torch"), ("bfloat16", "adamw_torch")
CLUSTERS = ONE_NODE, EIGHT_NODES
WAYS: tuple[Sharding, ...] = ("ddp", "fsdp2")

Rows = Iterator[Sequence[str]]
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """`page` with every marked table as it is now."""
    return _MARKED.sub(lambda found: f"{found[1]}{_markdown(TABLES[found[2]]())}{found[3]}", page)


def _markdown(rows: Rows) -> str:
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _workloads() -> Iterator[tuple[Workload, Cluster, Sharding]]:
    for model in MODELS:
        for kind in KINDS:
            for cluster in CLUSTERS:
                yield from ((Workload(model, *kind), cluster, way) for way in WAYS)


def _name(work: Workload) -> list[str]:
    return [work.model, f"{work.latents}, {work.optimizer}"]


def memory() -> Rows:
    """Bytes on each device by kind."""
    kinds = "weights", "optimizer", "gradients", "activations", "exchange"
    yield "model", "latents, optimizer", "GPUs", "sharing", *kinds, "all", "fits 80 GB"
    for work, cluster, way in _workloads():
        found = work.footprint(cluster.gpus, way)
        sizes = [f"{found.to_dict()[kind] / 1e9:.1f}" for kind in kinds]
        fits = "yes" if found.total < cluster.memory * _USABLE else "no"
        yield *_name(work), str(cluster.gpus), way, *sizes, f"{found.total / 1e9:.1f}", fits


_USABLE = 0.92
"""The rest is for the CUDA context, NCCL and what the allocator cannot use."""


def communication() -> Rows:
    """GB that a GPU sends in a step."""
    yield "model", "latents, optimizer", "GPUs", "micro-batches", "DDP", "FSDP2", "of it gathered", "of it reduced"
    for work, cluster, way in _workloads():
        if way == "ddp":
            continue
        step, gpus = work.step(cluster.gpus), cluster.gpus
        parts = [traffic.passed_on(part(step), gpus) for part in (traffic.gathered, traffic.reduced)]
        sent = [traffic.ddp(step, gpus), traffic.fsdp2(step, gpus), *parts]
        yield *_name(work), str(gpus), str(step.micro_batches), *(f"{size / 1e9:.1f}" for size in sent)


def time() -> Rows:
    """Seconds of a step, and what follows from them; only what fits."""
    yield (
        *("model", "latents, optimizer", "GPUs", "sharing", "step, overlapped", "step, not overlapped"),
        *("tokens/s", "hours for 1B tokens", "of ideal"),
    )
    for work, cluster, way in _workloads():
        if work.footprint(cluster.gpus, way).total >= cluster.memory * _USABLE:
            continue
        step, timing = work.step(cluster.gpus), work.timing(cluster, way)
        both = [step_seconds(step, timing, cluster.gpus, way, overlap) for overlap in (True, False)]
        ideal = step_seconds(step, replace(timing, bandwidth=float("inf")), cluster.gpus, way)
        rate = SAMPLES * LENGTH / both[0]
        figures = [*(f"{seconds:.2f} s" for seconds in both), f"{rate:,.0f}", f"{1e9 / rate / 3600:.1f}"]
        yield *_name(work), str(cluster.gpus), way, *figures, f"{ideal / both[0]:.0%}"


def limits() -> Rows:
    """Where FSDP2 stops scaling: the share of the ideal at other widths of the network between nodes."""
    adapters = 8, 4, 2, 1
    yield (
        "model",
        "latents, optimizer",
        *(f"{count} adapters a node" for count in adapters),
        "tokens needed with 1",
    )
    for model in MODELS:
        for kind in KINDS:
            work = Workload(model, *kind)
            shares = [_share(work, EIGHT_NODES.with_adapters(count)) for count in adapters]
            yield (
                *_name(work),
                *(f"{share:.0%}" for share in shares),
                f"{_needed(work, EIGHT_NODES.with_adapters(1)):,.0f}",
            )


def _share(work: Workload, cluster: Cluster) -> float:
    step, timing = work.step(cluster.gpus), work.timing(cluster, "fsdp2")
    ideal = step_seconds(step, replace(timing, bandwidth=float("inf")), cluster.gpus, "fsdp2")
    return ideal / step_seconds(step, timing, cluster.gpus, "fsdp2")


def _needed(work: Workload, cluster: Cluster) -> float:
    """Tokens of a micro-batch at which forward takes as long as gathering the layer after it."""
    layer = work.step(cluster.gpus).layers[0]
    gathering = traffic.passed_on(layer.weights, cluster.gpus) / cluster.bandwidth
    return gathering * cluster.speed / work.forward


def codes() -> Rows:
    """What a layer would weigh on the wire if codes were gathered in the place of latent weights."""
    yield "model", "latents", "a layer as it is gathered", "with 2-bit codes", "FSDP2 sends, GB a step", "with codes"
    for model in MODELS:
        for kind in KINDS:
            work, gpus = Workload(model, *kind), EIGHT_NODES.gpus
            step = work.step(gpus)
            coded = _coded(work, step)
            sizes = [f"{each.layers[0].weights / 1e6:,.0f} MB" for each in (step, coded)]
            yield model, work.latents, *sizes, *(f"{traffic.fsdp2(each, gpus) / 1e9:.1f}" for each in (step, coded))


def _coded(work: Workload, step: Step) -> Step:
    routed = work.alone.sizes.of_role("routed") // len(step.layers)
    width = 4 if work.latents == "float32" else 2
    return replace(
        step, layers=[Unit(layer.weights - routed * width + routed // 4, layer.gradients) for layer in step.layers]
    )


def checked() -> Rows:
    """Two processes over gloo on two CPU cores: what was counted and timed, and what was foretold."""
    yield (
        *("sharing", "bytes a process sends, foretold", "counted", "alone", "two, foretold", "two, measured", "error"),
        *("efficiency", "load of the machine"),
    )
    for row in json.loads(RESULTS.read_text())["runs"]:
        told, found = row["foretold_seconds"], row["seconds"]
        yield (
            *(row["sharding"], f"{row['foretold_bytes']:,}", f"{row['bytes']:,}", f"{row['alone_seconds']:.2f} s"),
            *(f"{told:.2f} s", f"{found:.2f} s", f"{told / found - 1:+.0%}", f"{row['alone_seconds'] / 2 / found:.2f}"),
            f"{row['load']:.1f}" if "load" in row else "not noted",
        )


TABLES: Mapping[str, Callable[[], Rows]] = {
    "memory": memory,
    "communication": communication,
    "time": time,
    "limits": limits,
    "codes": codes,
    "checked": checked,
}
"""Name in the page -> its rows, the first of them the header."""
