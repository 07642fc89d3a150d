"""In fresh processes: both import orders, and what a reader without mote_quant gets to see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, logits, quantize_it, upcycled

ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = ("llama", "llava")
OUR_IMPORTS = {
    "ours first": "import mote_quant\nimport transformers",
    "theirs first": "import transformers\nfrom transformers import AutoModelForCausalLM\nimport mote_quant",
    "a part of ours alone": "import mote_quant.hf.quantizer\nimport transformers",
}
READ = """
import json, sys, torch
from safetensors.torch import load_file
from pathlib import Path
root, found = Path(sys.argv[1]), {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    auto = transformers.AutoModelForImageTextToText if "llava" in folder.name else transformers.AutoModelForCausalLM
    try:
        model = auto.from_pretrained(folder)
    except Exception as error:
        found[folder.name] = {"error": f"{type(error).__name__}: {error}"}
        continue
    given = load_file(root / f"{folder.name}.safetensors")
    expected = given.pop("logits")
    with torch.no_grad():
        got = model(**given, use_cache=False).logits
    more = {key: value for key, value in given.items() if "pixel" in key}
    prompt = given["input_ids"][:1]
    more = {key: value[:1] for key, value in more.items()}
    write = lambda cached: model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cached, **more).tolist()
    found[folder.name] = {"difference": float((got - expected).abs().max()), "cached": write(True)}
    found[folder.name]["uncached"] = write(False)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Packed and latent models of several families, each with inputs and logits beside it."""
    root = tmp_path_factory.mktemp("saved")
    for family in (*FAMILIES, "gpt2", "opt"):
        model = pico.PICO[family]()
        context = upcycled(model, TERNARY | INT4_SHARED)
        if family in ("llama", "opt"):
            keep(model, root / f"latent-{family}")
        quantize_it(model, context)
        keep(model, root / f"packed-{family}")
    dense = pico.PICO["llama"]()
    context = upcycled(dense, {"attention": "int8"}, layers=[0], shared="none", top_k=2)
    quantize_it(dense, context)
    keep(dense, root / "integers-llama")
    return root


def keep(model, folder: Path) -> None:
    model.save_pretrained(folder)
    given = pico.inputs(model)
    given.pop("labels")
    save_file(given | {"logits": logits(model)}, folder.with_suffix(".safetensors"))


def start(imports: str, root: Path) -> subprocess.Popen:
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", imports + READ, str(root)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def found(saved) -> dict[str, dict]:
    """What each fresh process found; they run beside one another."""
    started = {
        name: start(imports, saved) for name, imports in (OUR_IMPORTS | {"without us": "import transformers"}).items()
    }
    results = {}
    for name, process in started.items():
        out, err = process.communicate(timeout=300)
        lines = [line for line in out.splitlines() if line.startswith("FOUND")]
        assert lines, f"{name}: {err[-2000:]}"
        results[name] = json.loads(lines[0].removeprefix("FOUND"))
    return results


@pytest.mark.parametrize("order", OUR_IMPORTS)
def test_a_fresh_process_gets_the_same_logits_whatever_the_import_order(found, order):
    assert len(found[order]) == 7
    for folder, result in found[order].items():
        assert "error" not in result, folder
        assert result["difference"] < 1e-4, folder
        assert result["cached"] == result["uncached"], folder


def test_without_us_nothing_is_loaded_quietly(found):
    for folder, result in found["without us"].items():
        assert "error" in result, f"{folder} was loaded by a reader that cannot know what it holds"
        assert "size mismatch" in result["error"] or "mismatch" in result["error"] or "shape" in result["error"], folder


def run_alone(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_import_is_light_and_leaves_no_watcher_behind_once_used():
    assert run_alone("import sys, mote_quant; print({'torch', 'transformers', 'numpy'} & set(sys.modules))") == "set()"
    code = "import importlib, sys, mote_quant; a = len(sys.meta_path); importlib.reload(mote_quant); "
    code += "print(len(sys.meta_path) - a)"
    assert run_alone(code) == "0"
    used = "import sys, mote_quant, transformers.quantizers.auto as a; "
    used += "print('mote' in a.AUTO_QUANTIZER_MAPPING, [f.watched for f in sys.meta_path if hasattr(f, 'watched')])"
    assert run_alone(used) in ("True ['peft.tuners.lora.model']", "True []")


def test_registering_again_changes_nothing():
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from mote_quant.hf.quantizer import register

    before = dict(AUTO_QUANTIZER_MAPPING)
    register()
    assert before == AUTO_QUANTIZER_MAPPING
