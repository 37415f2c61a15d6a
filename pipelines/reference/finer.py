"""Begin a model of small patches with the weights of one of larger patches.

The finer model is to make of a picture what the released one makes of that picture enlarged, every
latent repeated s x s times (s = p / q, patches of p and of q latents a side):
  embedding  W'[i, j] = sum over the s x s cells of W in which latent (i, j) is repeated      (1)
  output     V'[i, j] = mean over these cells of V                                            (2)
So it begins with shapes that it knows; but noise, which is independent from latent to latent where
these are repeated, looks stronger to it than it is. Training has to mend that.
"""

from torch import Tensor

__all__ = ["finer_patches"]

EMBEDDING, OUTPUT = "pos_embed.proj.weight", ("proj_out.weight", "proj_out.bias")


def finer_patches(released: dict[str, Tensor], patch: int) -> dict[str, Tensor]:
    """Return a PixArt model's weights for patches of `patch` latents a side.

    Raises ValueError if these do not divide the released patches.
    """
    kernel = released[EMBEDDING]  # [d, c, p, p]
    p, q = kernel.shape[-1], patch
    if p % q:
        raise ValueError(
            f"the released model has patches of {p} latents, which patches of {q} do not divide: "
            "begin at random, or choose a divisor"
        )
    s = p // q
    changed = {EMBEDDING: kernel.reshape(*kernel.shape[:2], q, s, q, s).sum((3, 5))}  # Eq. (1)
    for name in OUTPUT:  # [p p c, d] or [p p c]
        rows = released[name].reshape(q, s, q, s, -1, *released[name].shape[1:])
        changed[name] = rows.mean((1, 3)).flatten(0, 2)  # Eq. (2)
    return released | changed
