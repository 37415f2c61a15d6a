"""`import skipstep` adds the verbs to pipelines, nothing else: seen from fresh processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = {
    "autotune",
    "compare",
    "disable_plugin",
    "disable_plugins",
    "enable_plugin",
    "list_plugins",
    "load_plugins",
    "plugin_report",
    "plugins",
    "plugins_off",
    "save_plugins",
    "search",
}
HEAVY = {
    "accelerate",
    "av",
    "gradio",
    "lpips",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "ray",
    "rich",
    "torchmetrics",
    "torchvision",
    "transformers",
    "triton",
    "typer",
}
PROGRAM = """
import json, sys
import torch
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

bases = (DiffusionPipeline, ModularPipeline)
modules, attributes = set(sys.modules), [set(vars(base)) for base in bases]
import skipstep
print(json.dumps({
    "modules": sorted(set(sys.modules) - modules),
    "attributes": [sorted(set(vars(base)) - old) for base, old in zip(bases, attributes)],
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Import skipstep in a fresh process, away from the repository, and list what it added."""
    folder: Path = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_no_heavy_package_comes_along(seen: dict[str, list[str]]) -> None:
    assert not {name for name in seen["modules"] if name.split(".")[0] in HEAVY}


def test_no_plugin_is_imported(seen: dict[str, list[str]]) -> None:
    from skipstep.plugins.catalog import BUILTIN

    assert BUILTIN
    plugins = {target.partition(":")[0] for target in BUILTIN.values()}
    assert not plugins & set(seen["modules"])


def test_the_verbs_and_nothing_else_are_added(seen: dict[str, list[list[str]]]) -> None:
    pipeline, modular = seen["attributes"]
    assert set(pipeline) == VERBS
    assert set(modular) == VERBS


def test_every_public_name_resolves() -> None:
    import skipstep

    for name in skipstep.__all__:
        assert getattr(skipstep, name) is not None
    with pytest.raises(AttributeError, match="module 'skipstep' has no attribute 'enabel'"):
        _ = skipstep.enabel


def test_cuda_is_not_initialised(seen: dict[str, bool]) -> None:
    assert seen["cuda"] is False


def test_importing_twice_adds_the_verbs_once() -> None:
    program = """
import importlib
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
import skipstep
first = dict(vars(DiffusionPipeline))
importlib.reload(skipstep)
changed = [name for name, value in vars(DiffusionPipeline).items() if first.get(name) is not value]
assert not changed, changed
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
