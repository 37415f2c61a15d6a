"""Which noise goes with which picture: options that every recipe with data shares.

`independent`; `immiscible`: in each batch the noise is permuted so that the sum of squared
distances to the data is smallest, which is the linear assignment problem (Li et al. 2024,
"Immiscible Diffusion", arXiv:2406.12303; used by FlashAudio, Liu et al. 2025, arXiv:2410.12266).
A permutation leaves the distribution of the noise exactly as it was. In two dimensions it nearly
solves the transport problem; in latent space expect a few per cent.
Differs from the authors' code: nothing; the exact assignment, not an approximation.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Coupling", "couple", "immiscible"]

Coupling = Literal["independent", "immiscible"]


def immiscible(
    data: Float[Tensor, " b *size"], noise: Float[Tensor, " b *size"]
) -> Float[Tensor, " b *size"]:
    """Return the noise in the order that lies nearest to the data."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(data.flatten(1).float(), noise.flatten(1).float()).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.as_tensor(order, device=noise.device)]


def couple(
    law: Coupling, data: Float[Tensor, " b *size"], noise: Float[Tensor, " b *size"]
) -> Float[Tensor, " b *size"]:
    """Return the noise in the order of the law."""
    return immiscible(data, noise) if law == "immiscible" else noise
