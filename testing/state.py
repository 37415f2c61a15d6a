"""What can be seen of a pipeline from outside: the attributes of every module and of the scheduler.

`attributes` keeps the objects themselves and is compared with `changes`: has anything been put on,
taken off or exchanged? `picture_of` turns the same attributes into plain data, so that two
pipelines that were built apart can be compared.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attributes", "changes", "picture_of"]

DEEPEST = 6


def _parts(pipe: Any) -> Iterator[tuple[str, Any]]:
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            for path, module in component.named_modules():
                yield f"{name}.{path}".rstrip("."), module
        elif hasattr(component, "set_timesteps"):
            yield name, component


def attributes(pipe: Any) -> dict[str, dict[str, Any]]:
    """Return `vars()` of every module and of the scheduler, by name; tables inside are copied."""
    found = {name: _copied(vars(part)) for name, part in _parts(pipe)}
    return {"pipeline": _copied(vars(pipe))} | found


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: dict(value) if isinstance(value, dict | OrderedDict) else value
        for key, value in values.items()
    }


def changes(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """List what differs, as `part.attribute`; objects are compared by identity."""
    found = [f"{part} (came or went)" for part in before.keys() ^ after.keys()]
    for part in before.keys() & after.keys():
        old, new = before[part], after[part]
        found += [f"{part}.{key} (came)" for key in new.keys() - old.keys()]
        found += [f"{part}.{key} (went)" for key in old.keys() - new.keys()]
        found += [
            f"{part}.{key} (exchanged)"
            for key in old.keys() & new.keys()
            if not _same(old[key], new[key])
        ]
    return sorted(found)


def _same(old: Any, new: Any) -> bool:
    """Compare plain data by value and everything else by identity."""
    if old is new:
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple) and type(old) is type(new):
        return len(old) == len(new) and all(map(_same, old, new))
    return isinstance(old, int | float | str) and type(old) is type(new) and old == new


def picture_of(pipe: Any) -> dict[str, Any]:
    """Return the same attributes as plain data, tensors as hashes of their bytes.

    Modules inside modules are left out: they have entries of their own.
    """
    return {name: _plain(vars(part), DEEPEST) for name, part in _parts(pipe)}


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return _fingerprint(value)
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, dict):
        return {str(key): _plain(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, depth - 1) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(str(entry) for entry in value)
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    inside = _plain(vars(value), depth - 1) if hasattr(value, "__dict__") else None
    return [type(value).__qualname__, inside]


def _fingerprint(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return f"{value.dtype} {tuple(value.shape)} {digest}"
