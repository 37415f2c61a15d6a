"""The families of reference models: one row each, from the recipe's `family` to code.

A row is all that the trainer and the loader need to know of a pipeline class: how an untrained
denoiser is made, what its loss is, and how the pipeline around it is put together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipstep.pipelines.reference.batch import Batch
from skipstep.pipelines.reference.denoiser import flow_loss, new_denoiser, new_pixart_pipeline
from skipstep.pipelines.reference.joint import joint_flow_loss, new_joint, new_joint_pipeline
from skipstep.pipelines.reference.recipe import Data
from skipstep.pipelines.reference.unet import new_unet, new_unet_pipeline, velocity_loss
from skipstep.pipelines.reference.video import new_video, new_video_pipeline, video_flow_loss

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """The functions of one family; `matrices` names the part whose matrices Muon trains."""

    new: Callable[[dict[str, Any]], torch.nn.Module]
    loss: Callable[[torch.nn.Module, Batch, torch.Generator], Tensor]
    pipeline: Callable[[dict[str, Any], Any, Data], Any]
    matrices: tuple[str, ...]


FAMILIES = {
    "pixart": Family(new_denoiser, flow_loss, new_pixart_pipeline, ("transformer_blocks",)),
    "unet": Family(
        new_unet, velocity_loss, new_unet_pipeline, ("down_blocks", "mid_block", "up_blocks")
    ),
    "flux": Family(
        new_joint,
        joint_flow_loss,
        new_joint_pipeline,
        ("transformer_blocks", "single_transformer_blocks"),
    ),
    "wan": Family(new_video, video_flow_loss, new_video_pipeline, ("blocks",)),
}
