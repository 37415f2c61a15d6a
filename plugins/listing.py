"""Which plugins there are and which of them work on a given pipeline, with the reason where one
does not.
"""

from dataclasses import asdict, dataclass
from typing import Any

from skipstep.plugins import catalog
from skipstep.plugins.errors import PluginError
from skipstep.plugins.lifecycle import manager_of, why_not
from skipstep.plugins.profile import profile

__all__ = ["Listing", "Row", "list_for"]


@dataclass(frozen=True)
class Row:
    """One plugin on one pipeline; `why_not` is None where it works."""

    name: str
    kind: str
    is_active: bool
    why_not: str | None
    summary: str
    paper: str


@dataclass(frozen=True)
class Listing:
    """The catalogue, seen from one pipeline."""

    pipeline: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=4)
        lines = [f"plugins for {self.pipeline}:"]
        for row in self.rows:
            state = "active" if row.is_active else "works" if row.why_not is None else "no"
            reason = row.summary if row.why_not is None else row.why_not
            lines.append(f"  {row.name:<{width}}  {row.kind:<8}  {state:<6}  {reason}")
        return "\n".join(lines)


def list_for(pipe: Any) -> Listing:
    """Ask every plugin of the catalogue, with its default options, whether it can serve this
    pipeline.
    """
    found, manager = profile(pipe), manager_of(pipe)
    active = manager.handles if manager else {}
    rows = []
    for name in catalog.names():
        try:
            cls = catalog.load(name)
            reason = why_not(cls(), found)
            rows.append(Row(name, cls.kind, name in active, reason, cls.summary, cls.paper))
        except (PluginError, ImportError) as error:
            rows.append(Row(name, "?", False, str(error), "", ""))
    return Listing(type(pipe).__name__, tuple(rows))
