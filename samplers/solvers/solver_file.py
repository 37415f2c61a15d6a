"""A calibrated solver as a file: under a hundred numbers that a person can read.

It may come from a stranger, so it is read strictly (files/artefact.py), and refused where its
numbers form no solver. Nodes are stored as flow time t = sigma / (alpha + sigma), because s is
infinite where a flow begins.
"""

import json
import math
from pathlib import Path as File
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter

from skipstep.files.artefact import load_artefact
from skipstep.samplers.solvers.adams import Kernel
from skipstep.samplers.solvers.nodes import Spacing
from skipstep.samplers.solvers.paths import PathKind
from skipstep.samplers.solvers.presets import PresetName
from skipstep.samplers.solvers.scheduler import Table

__all__ = ["Fallback", "Measured", "SolverFile"]

LIMIT_BYTES = 65_536
KIND = "skipstep-solver"
Row = Annotated[tuple[float, ...], Field(min_length=2, max_length=6)]
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=CONFIG)
class Fallback:
    """Name the best published solver of the calibration: what runs outside the file's range."""

    preset: Annotated[PresetName, Field(description="The published update.")]
    spacing: Annotated[Spacing, Field(description="Where the network is asked.")] = "time"
    shift: Annotated[float, Field(gt=0, description="Shift of flow time.")] = 1.0
    offset: Annotated[float, Field(gt=0, description="c of spacing log_shift.")] = 0.1


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=CONFIG)
class Measured:
    """Say what the calibration saw: relative errors on noises that no row was fitted on.

    An error is the root mean square distance to a fine solution, in units of its spread.
    """

    calibrated: Annotated[float, Field(ge=0, description="Of the file's own rows.")]
    fallback: Annotated[float, Field(ge=0, description="Of the best published solver.")]
    plain: Annotated[float, Field(ge=0, description="Of Euler (DDIM), unshifted.")]
    trajectories: Annotated[int, Field(ge=1, description="Noises, those fitted on included.")]
    reference_steps: Annotated[int, Field(ge=2, description="Evaluations of a fine solution.")]
    seed: Annotated[int, Field(description="Seed of the first noise.")] = 0


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=CONFIG)
class SolverFile:
    """Hold a solver made for one model, one number of steps and a range of guidance.

    `rows[g][i]` is step i's row at guidance[g]: the weight of x, then of u, newest first. Between
    two scales rows are mixed linearly. No rows mean that a published solver, `fallback`, won.
    """

    version: Annotated[Literal[1], Field(description="Version of the file's form.")] = 1
    kind: Annotated[Literal["skipstep-solver"], Field(description="Sort of file.")] = (
        "skipstep-solver"
    )
    path: Annotated[PathKind, Field(description="vp, flow or edm.")]
    kernel: Annotated[Kernel, Field(description="What u is.")]
    times: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...],
        Field(min_length=2, max_length=65, description="N + 1 flow times, falling to 0."),
    ]
    guidance: Annotated[
        tuple[float, ...], Field(max_length=8, description="Scales fitted at; none: no guidance.")
    ] = ()
    guidance_range: Annotated[
        tuple[float, float] | None, Field(description="Scales the file may be used at.")
    ] = None
    rows: Annotated[
        tuple[Annotated[tuple[Row, ...], Field(max_length=64)], ...],
        Field(max_length=8, description="Per scale, per step: weights of x and u."),
    ]
    fallback: Annotated[Fallback, Field(description="The best published solver.")]
    measured: Annotated[Measured, Field(description="What the calibration saw.")]
    fingerprint: Annotated[
        dict[str, JsonValue], Field(max_length=64, description="What it was made for.")
    ] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that form no solver."""
        if self.times[-1] != 0 or any(
            b >= a for a, b in zip(self.times, self.times[1:], strict=False)
        ):
            raise ValueError("times must fall, and end at 0")
        if list(self.guidance) != sorted(set(self.guidance)):
            raise ValueError("guidance must rise, with no scale twice")
        if self.rows and len(self.rows) != max(1, len(self.guidance)):
            raise ValueError(f"{len(self.rows)} tables of rows for {len(self.guidance)} scales")
        for table in self.rows:
            if len(table) != self.steps:
                raise ValueError(f"{len(table)} rows for {self.steps} steps")
            if any(len(row) > i + 2 for i, row in enumerate(table)):
                raise ValueError("a row reaches further back than the first step")
        if len({tuple(len(row) for row in table) for table in self.rows}) > 1:
            raise ValueError("the tables of rows differ in length")

    @property
    def steps(self) -> int:
        """Return the number of network evaluations."""
        return len(self.times) - 1

    @property
    def numbers(self) -> int:
        """Count the numbers that were chosen or fitted."""
        inner = len(self.times) - 2
        return inner + sum(len(row) for table in self.rows for row in table)

    @property
    def nodes(self) -> list[float]:
        """Return the nodes as s."""
        return [math.inf if t == 1 else t / (1 - t) for t in self.times]

    def serves(self, guidance: float | None) -> bool:
        """Tell whether a scale is inside the range; a call that names none is."""
        if guidance is None or self.guidance_range is None:
            return True
        return self.guidance_range[0] <= guidance <= self.guidance_range[1]

    def table(self, guidance: float | None) -> Table | None:
        """Return the rows at a scale, or None where a published solver won."""
        if not self.rows:
            return None
        times = tuple(self.nodes)
        if guidance is None or len(self.rows) == 1:
            middle = self.rows[len(self.rows) // 2]
            return Table(self.kernel, times, middle)
        scale = min(max(guidance, self.guidance[0]), self.guidance[-1])
        right = next(i for i, each in enumerate(self.guidance) if each >= scale)
        left = max(0, right - 1)
        width = self.guidance[right] - self.guidance[left]
        share = (scale - self.guidance[left]) / width if width else 0.0
        mixed = tuple(
            tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))
            for low, high in zip(self.rows[left], self.rows[right], strict=True)
        )
        return Table(self.kernel, times, mixed)

    @classmethod
    def load(cls, path: str | File) -> "SolverFile":
        """Read a file.

        Raises ValueError that names the file and what is wrong with it.
        """
        return load_artefact(path, cls, kind=KIND, limit=LIMIT_BYTES, made_by="skipstep calibrate")

    def save(self, path: str | File) -> None:
        """Write the file, one row a line, so that it can be read and compared."""
        data: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        rows = data.pop("rows")
        text = json.dumps(data, indent=1, allow_nan=False)
        lines = [
            "  [\n" + ",\n".join("   " + json.dumps(row) for row in table) + "\n  ]"
            for table in rows
        ]
        inner = "[\n" + ",\n".join(lines) + "\n ]" if lines else "[]"
        whole = f'{text[:-2]},\n "rows": {inner}\n}}\n'
        File(path).expanduser().write_text(whole, encoding="utf-8")
