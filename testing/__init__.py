"""Tiny pipelines that need no download: what our tests, and tests of your plugin, build on."""

from skipstep.testing.families import EXTRA_FAMILIES, FAMILIES, run, tiny_pipeline
from skipstep.testing.tiny import Guidance, Tiny

__all__ = ["EXTRA_FAMILIES", "FAMILIES", "Guidance", "Tiny", "run", "tiny_pipeline"]
