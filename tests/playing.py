"""Scenarios, played in a process of their own: by `tests.killing` and `tests.company`, which say how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def played(module: str, work: Path, scenarios: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What `module` answers to each of the scenarios, played in `work`."""
    (work / "scenarios.json").write_text(json.dumps(scenarios))
    command = [sys.executable, "-m", module, str(work), str(work / "scenarios.json"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, done.stderr[-3000:]
    sys.stderr.write(done.stderr[-3000:])
    answers: dict[str, Any] = json.loads(lines[0].removeprefix("ANSWERS"))
    return answers
