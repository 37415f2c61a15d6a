"""What every sampler plugin is: frozen options that build a diffusers scheduler from the pipeline's
own.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

__all__ = ["SamplerPlugin"]


class SamplerPlugin(ABC):
    """Build a scheduler; the plugins layer swaps it in for the length of a run."""

    name: ClassVar[str]
    kind: ClassVar[str] = "sampler"
    summary: ClassVar[str]
    paper: ClassVar[str] = ""

    @abstractmethod
    def build(self, scheduler: Any) -> Any:
        """Return a new scheduler made from the pipeline's; the given one is not changed."""

    def why_not(self, profile: Any) -> str | None:
        """Return why this sampler cannot serve a pipeline, or None."""
        return None
