"""Use the installed wheel away from the repository, as a user does."""

import importlib.metadata
import pathlib
import subprocess
import sys

import skipstep
from skipstep.testing import run, tiny_pipeline

folder = pathlib.Path(skipstep.__file__).parent
if "site-packages" not in folder.parts:
    raise SystemExit(f"skipstep was imported from {folder}, not from the wheel")

tiny = tiny_pipeline("flux")
baseline = run(tiny)
print(f"skipstep {importlib.metadata.version('skipstep')}: pictures {tuple(baseline.shape)}")

command = pathlib.Path(sys.executable).with_name("skipstep")
subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
