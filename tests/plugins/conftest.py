"""Toy plugins that do nothing, in the catalogue while a test runs."""

import sys
import types
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import pytest
from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Often:
    """A part of a plugin, with options of its own."""

    type: Literal["often"] = "often"
    every: Annotated[int, Field(ge=1)] = 2


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Seldom:
    """Another such part."""

    type: Literal["seldom"] = "seldom"
    chance: Annotated[float, Field(gt=0, le=1)] = 0.5


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Toy:
    """Do nothing, with options of every sort."""

    name: ClassVar[str] = "toy"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Does nothing."
    paper: ClassVar[str] = ""

    threshold: Annotated[float, Field(gt=0, le=1, description="tau in Eq. (5)")] = 0.05
    warmup_steps: Annotated[int, Field(ge=1, description="first steps, always computed")] = 1
    metric: Literal["l1", "l2"] = "l1"
    label: str = ""
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    gate: Annotated[Often | Seldom, Field(discriminator="type")] = Often()

    def __post_init__(self) -> None:
        """Check what one option says about another."""
        if self.limit is not None and self.limit < self.warmup_steps:
            raise ValueError(f"limit={self.limit} is below warmup_steps={self.warmup_steps}")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Bare:
    """Do nothing, without options."""

    name: ClassVar[str] = "bare"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Does nothing either."
    paper: ClassVar[str] = ""


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the toys into an importable module and into the catalogue; return the module."""
    from skipstep.plugins import catalog

    module = types.ModuleType("toy_plugins")
    for toy in (Toy, Bare, Often, Seldom):
        setattr(module, toy.__name__, toy)
    monkeypatch.setitem(sys.modules, "toy_plugins", module)
    table = {"toy": "toy_plugins:Toy", "bare": "toy_plugins:Bare"}
    table["easycache"] = "toy_plugins:NoSuchClass"
    monkeypatch.setattr(catalog, "BUILTIN", table)
    return module
