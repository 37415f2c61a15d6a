"""Language in a scene: lift features of pictures onto Gaussians, and ask with a vector of text.

Lifting by weights, without training (Cheng et al. 2024, "Occam's LGS", arXiv:2412.01807). With w_kp
the weight of Gaussian k at pixel p when the views are rendered:
  f_k = sum_p w_kp F_p / sum_p w_kp
The sums are the gradient of sum_p <F_p, sum_k w_kp f_k> in f_k: one backward pass of the renderer.
Text and Gaussians are compared by cosine, as SceneSplat (Li et al. 2025, arXiv:2503.18052) does.

F are the dense features of any encoder that shares a space with text (CLIP, SigLIP); none is
shipped. Differs from the papers' code: no multi-scale masks before lifting (Occam's LGS), no
network over Gaussians (SceneSplat).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["lift_features", "similarity"]

LIFTED = "lifted"


def lift_features(
    gaussians: Gaussians,
    maps: Float[Tensor, "v height width c"],
    cameras: Cameras,
    *,
    name: str = "language",
) -> Gaussians:
    """Return the scene with the mean feature of the pixels where each Gaussian shows.

    Args:
        gaussians: The scene; a Gaussian that shows nowhere gets zeros.
        maps: Features of views, in the cameras' size.
        cameras: Of the maps.
        name: Of the new entry in `features`.

    Raises ValueError when maps and cameras do not belong together.
    """
    size = (len(cameras), cameras.height, cameras.width)
    if maps.shape[:3] != size:
        raise ValueError(
            f"maps of {tuple(maps.shape[:3])} (views, height, width) and cameras of {size}: resize "
            "the cameras to the maps with Cameras.resized"
        )
    bare = gaussians.detach()
    # One more channel counts the weights.
    sums = maps.new_zeros(len(bare), maps.shape[-1] + 1)
    for view in range(len(cameras)):
        carried = torch.zeros_like(sums).requires_grad_()
        wanted = torch.cat([maps[view], torch.ones_like(maps[view, ..., :1])], -1)
        with torch.enable_grad():
            scene = replace(bare, features={LIFTED: carried})
            rendered = scene.render(cameras[view], outputs=("features",)).features[LIFTED][0]
            (weighed,) = torch.autograd.grad((rendered * wanted).sum(), carried)
        sums += weighed
    lifted = sums[:, :-1] / sums[:, -1:].clamp_min(1e-6)
    return replace(gaussians, features={**gaussians.features, name: lifted})


def similarity(
    gaussians: Gaussians, query: Float[Tensor, " c"], *, name: str = "language"
) -> Float[Tensor, " n"]:
    """Return the cosine between every Gaussian's feature and a query, such as a text's embedding.

    Raises ValueError when the scene has no such feature or the query another length.
    """
    if name not in gaussians.features:
        known = ", ".join(gaussians.features) or "none"
        raise ValueError(f"the scene has no feature {name!r} (known: {known}): lift_features first")
    features = gaussians.features[name]
    if features.shape[-1] != len(query):
        raise ValueError(
            f"a query of {len(query)} values and features of {features.shape[-1]}: use the text "
            "encoder that belongs to the pictures' encoder"
        )
    return torch.nn.functional.cosine_similarity(features, query[None].to(features), dim=-1)
