"""Geometry keeps its own dtype: the half precision of autocast would move splats by pixels."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["full_precision"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a function outside of any autocast region around it.

    >>> double = full_precision(lambda a: a @ a)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     double(torch.eye(2)).dtype
    torch.float32
    """

    @wraps(function)
    def outside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*args, **kwargs)

    return outside
