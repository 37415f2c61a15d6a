"""Any method of sparse attention by name, with the options that all of them share.

    pipe.enable_plugin("block_sparse", method="sparge", keep=0.3)

is `pipe.enable_plugin("sparge", keep=0.3)`; what only one method knows (a stride, a tile) is an
option of that method's own name.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.plugins.attention.methods.asa import ASA
from skipstep.plugins.attention.methods.base import SharedOptions, SparseAttention
from skipstep.plugins.attention.methods.draft import Draft
from skipstep.plugins.attention.methods.flexprefill import FlexPrefill
from skipstep.plugins.attention.methods.grid_permutation import GridPermutation
from skipstep.plugins.attention.methods.hip import HiP
from skipstep.plugins.attention.methods.minference import MInference
from skipstep.plugins.attention.methods.nabla import Nabla
from skipstep.plugins.attention.methods.radial import Radial
from skipstep.plugins.attention.methods.recycled import Recycled
from skipstep.plugins.attention.methods.sparge import Sparge
from skipstep.plugins.attention.methods.sta import SlidingTile
from skipstep.plugins.attention.methods.svg1 import SVG1
from skipstep.plugins.attention.methods.svg2 import SVG2
from skipstep.plugins.attention.methods.vsa import VSA
from skipstep.plugins.attention.methods.xattention import XAttention

__all__ = ["METHODS", "BlockSparse"]

METHODS: dict[str, type[SparseAttention]] = {
    cls.name: cls
    for cls in (
        ASA,
        Draft,
        FlexPrefill,
        HiP,
        MInference,
        GridPermutation,
        Nabla,
        Radial,
        Recycled,
        Sparge,
        SlidingTile,
        SVG1,
        SVG2,
        VSA,
        XAttention,
    )
}
"""Name -> method."""

Method = Literal[
    "asa",
    "draft",
    "flexprefill",
    "hip",
    "minference",
    "mminference",
    "nabla",
    "radial",
    "recycled",
    "sparge",
    "sta",
    "svg1",
    "svg2",
    "vsa",
    "xattention",
]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class BlockSparse(SharedOptions):
    """Attend sparsely by any of the methods."""

    name: ClassVar[str] = "block_sparse"
    summary: ClassVar[str] = "Sparse attention by any method, with one set of options."

    method: Annotated[Method, Field(description="Which blocks are kept: a method's name.")] = (
        "sparge"
    )

    def __post_init__(self) -> None:
        """Refuse what the method refuses."""
        try:
            self.resolve()
        except pydantic.ValidationError as error:
            said = error.errors()[0]
            raise ValueError(str(said.get("ctx", {}).get("error", said["msg"]))) from None

    def resolve(self) -> SparseAttention:
        """Return the method with the options that are given here, and its own defaults."""
        chosen = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(SharedOptions)
            if getattr(self, field.name) != field.default
        }
        return METHODS[self.method](**chosen)
