"""Every Triton kernel becomes machine code for GPUs that this machine does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_gpus.py")


@pytest.mark.parametrize("architecture", [pytest.param("80", marks=pytest.mark.slow), "90"])
def test_every_kernel_compiles(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), architecture],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    kernels = SCRIPT.parents[2].joinpath("kernels")
    wanted = {name for name in launched(kernels) if name.endswith("_kernel")}
    assert compiled == wanted


def launched(folder: Path) -> set[str]:
    """List the kernels that the folder launches, as `name[grid](...)`."""
    found = set()
    for path in folder.glob("*_triton.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        found |= {line.split("[")[0].strip() for line in lines if "_kernel[" in line}
    return found
