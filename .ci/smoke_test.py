"""Use the installed wheel away from the repository, as a user does."""

import importlib.metadata
import pathlib
import subprocess
import sys

import torch

import skipstep
from skipstep.testing import run, tiny_pipeline


def expect(claim: bool, words: str) -> None:
    """Stop with words where a claim does not hold."""
    if not claim:
        raise SystemExit(f"smoke test: {words}")


folder = pathlib.Path(skipstep.__file__).parent
expect("site-packages" in folder.parts, f"skipstep is imported from {folder}, not from the wheel")
version = importlib.metadata.version("skipstep")
expect(version == skipstep.__version__, f"the wheel is {version}, the code {skipstep.__version__}")

tiny = tiny_pipeline("flux")
plain = run(tiny, steps=8)
tiny.pipe.enable_plugin("fora", interval=2, warmup_steps=2)
run(tiny, steps=8)
report = tiny.pipe.plugin_report()
print(report)
expect(0 < report.computed < report.total, "fora skipped nothing")
tiny.pipe.disable_plugins()
expect(torch.equal(plain, run(tiny, steps=8)), "switching off did not restore the pipeline")

pipe = skipstep.load_reference()
picture = pipe("a pizza, 3d style, on a blue background", num_inference_steps=4).images[0]
expect(picture.size == (128, 128), f"the reference model made a picture of {picture.size}")

command = pathlib.Path(sys.executable).with_name("skipstep")
subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
print(f"skipstep {version} works from {folder}")
