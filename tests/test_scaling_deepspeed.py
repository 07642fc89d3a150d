"""The DeepSpeed configs of docs/: what they say, and two steps of HF Trainer with each, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[1] / "docs" / "deepspeed"
TRAIN = """
import sys
from transformers import Trainer, TrainingArguments
from eval.scaling.shape import Shape, built

shape = Shape(hidden=64, inner=96, layers=2, experts=2, vocabulary=96, length=16)
model = built(shape)
samples = [{"input_ids": row, "labels": row} for row in shape.tokens(8, 0)]
arguments = TrainingArguments(
    sys.argv[2], deepspeed=sys.argv[1], max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[],
    save_strategy="no", logging_steps=1,
)
trainer = Trainer(model, arguments, train_dataset=samples)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert trainer.is_deepspeed_enabled
assert len(losses) == 2, losses
print("stage", trainer.deepspeed.zero_optimization_stage())
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_a_config_says_its_stage_and_leaves_the_rest_to_the_trainer(stage: int) -> None:
    config = json.loads((CONFIGS / f"zero{stage}.json").read_text())
    assert config["zero_optimization"]["stage"] == stage
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[name] == "auto"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed (pip install deepspeed)")
@pytest.mark.parametrize("stage", [2, 3])
def test_two_steps_of_trainer(stage: int, tmp_path: Path) -> None:
    given = {"DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    given |= {
        "MASTER_PORT": str(29600 + stage),
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
    }
    command = [sys.executable, "-c", TRAIN, str(CONFIGS / f"zero{stage}.json"), str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | given,
        cwd=CONFIGS.parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"stage {stage}" in done.stdout
