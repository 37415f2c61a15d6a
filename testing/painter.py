"""A pipeline that paints in microseconds, and fails where its prompt says so.

For tests of what is around a pipeline. A picture is noise from the row's generator, with marks that
depend on the prompt and, as rounding does in real pipelines, on the rows beside it. Words in a
prompt make trouble: `raise`, `nan`, `black`, `oom` (with more than one row), `oom-alone` (always),
`kill` (SIGKILL to its own process), `hang`.
"""

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Painter"]


class Painter:
    """Paint pictures of `side` pixels, each call taking `seconds` at least."""

    components: dict[str, Any] = {}

    def __init__(self, side: int = 16, seconds: float = 0.0) -> None:
        self.side = side
        self.seconds = seconds
        self.calls: list[list[str]] = []

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        output_type: str,
        guidance_scale: float = 1.0,
        negative_prompt: Sequence[str] | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> dict[str, Any]:
        """Return pictures [b, height, width, 3] in [0, 1], or do what the prompts say."""
        self.calls.append(list(prompt))
        words = {word for text in prompt for word in text.split()}
        if "kill" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in words:
            time.sleep(3600)
        if "raise" in words:
            raise RuntimeError("the prompt says so")
        if "oom-alone" in words or ("oom" in words and len(prompt) > 1):
            raise torch.OutOfMemoryError("out of memory, the prompt says so")
        time.sleep(self.seconds)
        size = (height or self.side, width or self.side, 3)
        settings = f"{num_inference_steps}|{guidance_scale}|{list(negative_prompt or [])}"
        beside = hashlib.sha256(f"{list(prompt)}|{settings}".encode()).digest()
        pictures = []
        for text, noise in zip(prompt, generator, strict=True):
            picture = torch.rand(size, generator=noise).numpy()
            own = hashlib.sha256(text.encode()).digest()
            picture.reshape(-1)[:64] = np.frombuffer(own + beside, np.uint8) / np.float32(255)
            if "nan" in text.split():
                picture[0, 0, 0] = np.nan
            if "black" in text.split():
                picture[:] = 0
            pictures.append(picture)
        return {"images": np.stack(pictures)}
