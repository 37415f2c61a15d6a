"""What all splat files share: the error, the check of counts against the size, the plain values."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["FormatError", "arrays", "checked", "whole_rows"]


class FormatError(ValueError):
    """A file that does not hold what its ending or its header says."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path.name} cannot be read: {problem}")


def whole_rows(path: Path, count: int, row_bytes: int, begin: int) -> None:
    """Raise FormatError when the file is too short for its rows; nothing is allocated before."""
    size = path.stat().st_size
    if begin + count * row_bytes > size:
        raise FormatError(
            path, f"{count} splats of {row_bytes} bytes do not fit into its {size} bytes"
        )


def checked(path: Path, gaussians: Gaussians) -> Gaussians:
    """Return the splats of a file if they can be used, else raise FormatError."""
    if problems := gaussians.problems():
        raise FormatError(path, "; ".join(problems))
    return gaussians


def arrays(gaussians: Gaussians) -> dict[str, Any]:
    """Return means, unit quats, scales, opacities and sh as float32 arrays."""
    plain = gaussians.checked().detach().to("cpu").to(torch.float32)
    values: dict[str, np.ndarray[Any, Any]] = {
        "means": plain.means.numpy(),
        "quats": torch.nn.functional.normalize(plain.quats, dim=-1).numpy(),
        "scales": plain.scales.clamp_min(1e-12).numpy(),
        "opacities": plain.opacities.numpy(),
        "sh": plain.sh.numpy(),
    }
    return values
