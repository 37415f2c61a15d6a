"""What a plugin is: the options of one algorithm, checked and frozen.

    @pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    class Fade:
        name: ClassVar[str] = "fade"
        kind: ClassVar[str] = "custom"
        summary: ClassVar[str] = "Fade every picture to grey."
        paper: ClassVar[str] = ""
        strength: Annotated[float, Field(ge=0, le=1, description="how grey")] = 0.5

`kind` says where it attaches. `skipstep.plugins.catalog.check_class` tells in words what a class
lacks.
"""

from typing import ClassVar, Protocol, runtime_checkable

__all__ = ["Plugin"]


@runtime_checkable
class Plugin(Protocol):
    """Say what every options object knows about its algorithm.

    `summary` is one line. `paper` is the title and the arXiv id, or empty.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
