"""What every way to fuse views has in common: its options, and the one call it stands in for.

A reconstructor `encode`s posed pictures into tokens view by view, `fuse`s the tokens of all views
in its `transformer_blocks`, and `decode`s them to Gaussians; its forward is the three in a row.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pydantic
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor

__all__ = ["ViewPlugin", "plainly"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ViewPlugin(ABC):
    """Hold the options of one way to fuse views; a subclass says how."""

    kind: ClassVar[str] = "views"
    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    # Whether the plugin's cost allows for more views than plain fusion does.
    many_views: ClassVar[bool] = False

    @abstractmethod
    def reconstruct(
        self,
        model: Any,
        pictures: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
    ) -> tuple[Any, str]:
        """Return what `model` makes of the views, and what was done, in words.

        The model's own forward must not be called: this stands around it.
        """


def plainly(
    model: Any,
    pictures: Float[Tensor, "b v 4 height width"],
    w2c: Float[Tensor, "b v 4 4"],
    K: Float[Tensor, "b v 3 3"],
) -> Any:
    """Return what the model makes of the views by itself."""
    encoded = model.encode(pictures, w2c, K)
    return model.decode(encoded, model.fuse(encoded.tokens))
