"""Nestings of tensors: samples are taken out and put back, whatever else a model is given."""

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from skipstep.caching.tree import join_rows, map_tensors, select_rows, tensors_in


def rows(total: int, *shape: int) -> Tensor:
    """Return a batch whose entry is its sample's number."""
    return torch.arange(total).reshape(-1, *[1 for _ in shape]).expand(total, *shape).clone()


def chosen(tree: Any, *, lists_are_rows: bool = False, frames: tuple[int, ...] = ()) -> Any:
    return select_rows(tree, [0, 2], 3, lists_are_rows=lists_are_rows, frames=frames)


def test_batched_tensors_are_selected_at_any_depth_and_others_shared() -> None:
    picture, table, number = rows(3, 4), torch.zeros(7, 2), torch.tensor(5.0)
    given = {"x": picture, "added": {"ids": picture}, "rope": (table, table), "t": number, "n": 3}
    found = chosen(given)
    assert found["x"][:, 0].tolist() == [0, 2]
    assert found["added"]["ids"].shape == (2, 4)
    assert found["rope"][0] is table and found["t"] is number and found["n"] == 3


def test_lists_of_one_entry_per_sample_are_selected() -> None:
    assert chosen({"lengths": [5, 6, 7]}) == {"lengths": [5, 7]}
    assert chosen([[(1, 2, 2)], [(1, 3, 3)], [(1, 4, 4)]]) == [[(1, 2, 2)], [(1, 4, 4)]]


def test_a_list_of_as_many_batches_as_samples_is_not_mistaken_for_samples() -> None:
    residuals = [rows(3, 2), rows(3, 4), rows(3, 8)]
    assert [value.shape for value in chosen(residuals)] == [(2, 2), (2, 4), (2, 8)]
    assert [value.shape for value in chosen(residuals, lists_are_rows=True)] == [(3, 2), (3, 8)]


def test_frames_folded_into_the_batch_follow_their_sample() -> None:
    text = rows(3, 5).repeat_interleave(4, dim=0)
    assert chosen(text, frames=(6, 4))[:, 0].tolist() == [0] * 4 + [2] * 4
    assert chosen(text) is text


def test_what_was_taken_apart_is_put_together() -> None:
    whole = {"a": rows(3, 4), "b": rows(3, 2).repeat_interleave(2, dim=0)}
    parts = [
        ({"a": whole["a"][[0, 2]], "b": whole["b"][[0, 1, 4, 5]]}, [0, 2]),
        ({"a": whole["a"][[1]], "b": whole["b"][[2, 3]]}, [1]),
    ]
    joined = join_rows(parts, 3)
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_diffusers_outputs_keep_their_class() -> None:
    output = Transformer2DModelOutput(sample=torch.ones(2))
    doubled = map_tensors(output, lambda x: x * 2)
    assert isinstance(doubled, Transformer2DModelOutput)
    assert doubled.sample.tolist() == [2, 2]
    assert [x.shape for x in tensors_in([output, {"t": torch.ones(1)}, 3])] == [(2,), (1,)]
