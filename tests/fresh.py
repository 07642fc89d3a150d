"""Models loaded in a process of their own, by plain `from_pretrained`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from transformers import PreTrainedModel

from tests import pico

_LOAD = """
import json, sys
from pathlib import Path
import torch
import transformers
{imports}
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
said = {{}}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
        model = kind.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = model(**load_file(folder / "given.tensors"), use_cache=False).logits
        tensors = {{name: tensor.clone() for name, tensor in model.state_dict().items()}}
        save_file(tensors | {{"the logits": logits}}, folder / "seen.tensors")
        said[folder.name] = "loaded"
    except Exception as error:
        said[folder.name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""


def give_inputs(model: PreTrainedModel, folder: Path) -> None:
    """Leave the batch of `model` in its folder, for `load_all`."""
    from safetensors.torch import save_file

    batch = pico.inputs(model)
    batch.pop("labels")
    save_file({name: value.contiguous() for name, value in batch.items()}, folder / "given.tensors")


def load_all(folder: Path, imports: str) -> dict[str, str]:
    """Load and run every model of `folder` after `imports`; what became of each.

    `seen.tensors` beside each has its state dict and `the logits`.
    """
    command = [sys.executable, "-c", _LOAD.format(imports=imports), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said
