"""Nested model inputs and outputs: take the tensors out, put others in, select rows of a batch,
join rows again.

Works on tensors, lists, tuples, dicts and diffusers' output classes (dicts with attributes).
Everything else is passed on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["join_rows", "map_tensors", "rows_of", "select_rows", "stacked", "tensors_in"]


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return the same nesting with `function` applied to every tensor, left to right."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return type(tree)(**{key: map_tensors(value, function) for key, value in tree.items()})
    if isinstance(tree, list):
        return [map_tensors(value, function) for value in tree]
    if isinstance(tree, tuple):
        return tuple(map_tensors(value, function) for value in tree)
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors of a nesting, left to right."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [tensor for entry in tree for tensor in tensors_in(entry)]
    return []


def rows_of(main: Any) -> int:
    """Return how many samples a denoiser's main input holds: its first dimension, or the length of
    a list.
    """
    return len(main)


def stacked(main: Any) -> Tensor:
    """Return a main input or output as one tensor [rows, ...]; lists hold one tensor per sample."""
    return torch.stack(list(main)) if isinstance(main, list | tuple) else main


def select_rows(
    tree: Any, rows: Sequence[int], total: int, *, lists_are_rows: bool, frames: Sequence[int] = ()
) -> Any:
    """Return `tree` for some samples of a batch of `total`.

    A tensor belongs to the batch when its first dimension is `total`. A list belongs to it when it
    has `total` entries and either the model takes its samples as lists (`lists_are_rows`) or the
    entries are not batched tensors themselves. Numbers, tuples of numbers and everything else are
    shared by all samples.

    `frames` are the counts that may be folded into the first dimension behind the sample's number:
    a video UNet takes its text once per frame, [total * frames, ...].
    """

    def select(value: Any) -> Any:
        if isinstance(value, Tensor):
            per_row = next((n for n in (1, *frames) if value.shape[:1] == (total * n,)), None)
            if per_row is None:
                return value
            entries = [row * per_row + i for row in rows for i in range(per_row)]
            return value.index_select(0, torch.tensor(entries, device=value.device))
        if isinstance(value, dict):
            return type(value)(**{key: select(entry) for key, entry in value.items()})
        if (
            isinstance(value, list)
            and len(value) == total
            and (lists_are_rows or not _batched(value))
        ):
            return [value[row] for row in rows]
        if isinstance(value, list):
            return [select(entry) for entry in value]
        if isinstance(value, tuple):
            return tuple(select(entry) for entry in value)
        return value

    def _batched(value: list[Any]) -> bool:
        return all(
            isinstance(entry, Tensor) and entry.ndim > 0 and entry.shape[0] == total
            for entry in value
        )

    return select(tree)


def join_rows(parts: Sequence[tuple[Any, Sequence[int]]], total: int) -> Any:
    """Return one output for the whole batch from the outputs of its row groups, each given with its
    rows.
    """
    trees = [tree for tree, _ in parts]
    first = trees[0]
    if isinstance(first, Tensor):
        return _join_tensors(trees, [rows for _, rows in parts], total)
    if isinstance(first, dict):
        return type(first)(
            **{key: join_rows([(tree[key], rows) for tree, rows in parts], total) for key in first}
        )
    if isinstance(first, list) and all(len(tree) == len(rows) for tree, rows in parts):
        joined: list[Any] = [None] * total
        for tree, rows in parts:
            for entry, row in zip(tree, rows, strict=True):
                joined[row] = entry
        return joined
    if isinstance(first, list | tuple):
        columns = [
            join_rows([(tree[i], rows) for tree, rows in parts], total) for i in range(len(first))
        ]
        return type(first)(columns)
    return first


def _join_tensors(tensors: Sequence[Tensor], groups: Sequence[Sequence[int]], total: int) -> Tensor:
    first, per_row = tensors[0], tensors[0].shape[0] // len(groups[0])
    joined = first.new_empty((total, per_row, *first.shape[1:]))
    for tensor, rows in zip(tensors, groups, strict=True):
        joined[torch.tensor(list(rows), device=joined.device)] = tensor.reshape(
            len(rows), per_row, *first.shape[1:]
        )
    return joined.flatten(0, 1)
