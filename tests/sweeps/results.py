"""A sweep's document as the engine writes it, small and made up."""

from __future__ import annotations

from typing import Any

KIB = 1024
# contender, family, group, learning rate, stored KiB, paper KiB, resident KiB, mean accuracy, mean loss
CONTENDERS = [
    ("dense-bf16", "dense", "dense", 2e-3, 48, 48, 48, 0.700, 0.90),
    ("dense-int4", "dense", "dense", 2e-3, 13, 12, 48, 0.655, 1.02),
    ("moe-bf16", "moe", "full-precision MoE", 4e-3, 192, 192, 192, 0.862, 0.41),
    ("moe-int8", "moe", "full-precision MoE", 4e-3, 98, 96, 98, 0.861, 0.41),
    ("moe-int4", "moe", "full-precision MoE", 4e-3, 52, 48, 52, 0.845, 0.47),
    ("moe-int3", "moe", "full-precision MoE", 4e-3, 40, 36, 52, 0.801, 0.60),
    ("few-int4", "moe2", "few int4 experts", 4e-3, 26, 24, 26, 0.822, 0.55),
    ("mote-bf16", "mote", "MoTE", 8e-3, 73, 72, 73, 0.848, 0.45),
    ("mote-int8", "mote", "MoTE", 8e-3, 50, 48, 50, 0.848, 0.45),
    ("mote-int4", "mote", "MoTE", 8e-3, 38, 36, 38, 0.840, 0.48),
    ("mote-int3", "mote", "MoTE", 8e-3, 35, 33, 38, 0.823, 0.52),
]
# What a seed does to everybody, and to each contender beside it.
SHIFTS = (-0.006, 0.002, 0.004)
JITTERS = ((0.002, -0.001, -0.001), (-0.001, 0.003, -0.002), (0.000, -0.002, 0.002))


def document(**sweep: Any) -> dict[str, Any]:
    """Eleven contenders of four groups, three seeds; keyword arguments replace keys of `sweep`."""
    return {
        "sweep": {
            "name": "digits",
            "description": "Who knows most in 40 KiB?",
            "base": "digits-vqa",
            "data": "digits-vqa",
            "seeds": [0, 1, 2],
            "score": "accuracy",
            "higher_is_better": True,
            "match": "stored",
            "budgets": [{"text": "40KiB", "bytes": 40 * KIB}, {"text": "8KiB", "bytes": 8 * KIB}],
            "learning_rates": [2e-3, 4e-3, 8e-3],
            "train": {"steps": 400, "batch_size": 64},
            **sweep,
        },
        "points": [point for row, line in enumerate(CONTENDERS) for point in _points(row, *line)],
        "grid": [
            {"family": "moe", "learning_rate": 4e-3, "validation": 0.84, "chosen": True},
            {"family": "moe", "learning_rate": 8e-3, "validation": 0.81, "chosen": False},
        ],
        "misfits": [{"contender": "moe-bf16", "budget": "8KiB", "why": "needs 192 KiB"}],
        "failures": [{"cell": "ab12", "contender": "moe-int2", "seed": 1, "error": "</script><script>alert(1)"}],
        "provenance": {"mote_quant": "0.1.0", "commit": "d66c16f", "packages": {"numpy": "2"}, "command": "mote-quant"},
    }


def _points(row, name, family, group, rate, stored, paper, resident, accuracy, loss):
    for seed, shift in enumerate(SHIFTS):
        score = accuracy + shift + JITTERS[row % 3][seed]
        point = {
            "contender": name, "family": family, "group": group, "seed": seed, "learning_rate": rate,
            "accuracy": score, "loss": loss - 2 * shift,
            "paper_bytes": paper * KIB, "stored_bytes": stored * KIB, "resident_bytes": resident * KIB,
            "model_stored_bytes": (stored + 60) * KIB, "model_resident_bytes": (resident + 60) * KIB,
            "train_seconds": 9.5 + seed, "tokens_trained": 512000, "kl_dense": 0.2, "agreement_dense": 0.8,
            "prompt_tokens_per_s": 51000.0, "decode_tokens_per_s": 900.0, "peak_resident_bytes": 300 << 20,
            "recipe": f"name: {name}\nseed: {seed}\npipeline:\n  - upcycle: {{experts: 4, top_k: 2}}\n",
            "fits": ["40KiB"] if stored <= 40 else [],
        }  # fmt: skip
        if name.split("-")[1].startswith("int"):
            point |= {"calibration_tokens_min": 64 + seed, "calibration_tokens_mean": 900.5, "unquantized_loss": 0.4}
        yield point | ({"entropy": 1.9, "load_min": None} if family != "dense" else {})


def one_seed(**sweep: Any) -> dict[str, Any]:
    """The same document with its first seed only."""
    whole = document(**({"seeds": [0]} | sweep))
    return whole | {"points": [point for point in whole["points"] if point["seed"] == 0]}
