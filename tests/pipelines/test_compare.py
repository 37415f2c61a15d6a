"""Comparing arms: same seeds, honest costs, honest words, and pages that load nothing from outside."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from skipstep.pipelines import arms as arms_module
from skipstep.pipelines import compare as compare_module
from skipstep.pipelines.arms import equal_cost_steps
from skipstep.pipelines.compare import compare
from skipstep.pipelines.comparison import ArmResult, Comparison, judge
from skipstep.pipelines.intervals import bootstrap_interval, estimate, worst_decile
from skipstep.pipelines.pictures import read_pictures, to_bytes
from skipstep.plugins.errors import PluginError

SIZE = 32


@dataclass
class Choice:
    compute: bool


@dataclass
class Call:
    step: int
    choices: list[Choice]


@dataclass
class FakePipeline:
    """Pictures are noise of the seed plus an error that grows with what is left out; records its calls."""

    error_of_skip: float = 0.002
    error_of_step: float = 0.1
    drift: float = 0.0
    calls: list[tuple[str, int, list[int]]] = field(default_factory=list)
    active: tuple[Any, ...] = ()
    events: list[str] = field(default_factory=list)

    def set_progress_bar_config(self, **config: Any) -> None:
        self._progress_bar_config = config

    @contextmanager
    def plugins_off(self) -> Iterator[None]:
        before, self.active = self.active, ()
        try:
            yield
        finally:
            self.active = before

    @contextmanager
    def plugins(self, *plugins: Any) -> Iterator[None]:
        assert self.active == ()
        self.active = plugins
        self.events.append("attach")
        try:
            yield
        finally:
            self.active = ()
            self.events.append("detach")

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int,
        generator: list[torch.Generator],
        output_type: str,
        guidance_scale: float = 1.0,
    ) -> SimpleNamespace:
        name = "+".join(plugin.name for plugin in self.active)
        self.calls.append((name, num_inference_steps, [g.initial_seed() for g in generator]))
        computed = [True] * num_inference_steps
        for plugin in self.active:
            every = getattr(plugin, "every", 2)
            computed = [i % every == 0 or every == 1 for i in range(num_inference_steps)]
        skips = computed.count(False)
        error = self.error_of_skip * skips + self.error_of_step / num_inference_steps
        error += self.drift * len(self.calls)
        pictures = np.stack(
            [torch.rand(SIZE, SIZE, 3, generator=g).numpy() * 0.5 + 0.2 + error for g in generator]
        )
        if guidance_scale > 100:
            pictures[:] = np.nan
        self.report = SimpleNamespace(
            fraction=1 - skips / num_inference_steps,
            flops_done=None,
            flops_full=None,
            bytes_held=1024 * 1024,
            calls=[Call(i, [Choice(c)] * 2 * len(prompt)) for i, c in enumerate(computed)],
            verdict="0 of 10 steps reused: every=1 leaves nothing to skip"
            if skips == 0
            else "fine",
            warnings=[],
        )
        return SimpleNamespace(images=pictures)

    def plugin_report(self) -> Any:
        return self.report
