"""Reading a call of an attention module: picture and text told apart, wrong readings found out."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from skipstep.plugins.profile import parameters_of
from skipstep.plugins.tokens.denoiser_call import picture_grids
from skipstep.plugins.tokens.importance import attention_received
from skipstep.plugins.tokens.reach import AttentionCall, permutes, read


class Joint(nn.Module):
    """Attend over text and picture with one table of positions for both."""

    def __init__(self, text_first: bool) -> None:
        super().__init__()
        self.text_first = text_first

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rope: Tensor | None = None,
    ) -> Any:
        """Mix all tokens by their similarity after positions are added."""
        count, x = hidden_states.shape[1], hidden_states
        if encoder_hidden_states is not None:
            parts = [encoder_hidden_states, hidden_states]
            x = torch.cat(parts if self.text_first else parts[::-1], 1)
        x = x if rope is None else x + rope
        y = torch.softmax(x @ x.mT, -1) @ x
        if encoder_hidden_states is None:
            return y
        text = y.shape[1] - count
        return (y[:, text:], y[:, :text]) if self.text_first else (y[:, :count], y[:, count:])


def readings(module: nn.Module, count: int, known: bool | None, **kwargs: Any) -> list[Any]:
    """Return the readings of a call and which of them are proved right."""
    calls = read(module, parameters_of(module), module, (), kwargs, (count,), known)
    output = module(**kwargs)
    return [(call, permutes(call, output)) for call in calls]


@pytest.mark.parametrize("text_first", [True, False])
def test_the_order_of_text_and_picture_is_found_from_their_positions(text_first: bool) -> None:
    x, text = torch.randn(2, 12, 8), torch.randn(2, 5, 8)
    rope = 3 * torch.randn(17, 8)
    found = readings(
        Joint(text_first), 12, None, hidden_states=x, encoder_hidden_states=text, rope=rope
    )
    assert [(call.layout.text_first, right) for call, right in found] == [
        (True, text_first),
        (False, not text_first),
    ]
    assert all(call.is_telling for call, _ in found)


def test_one_sequence_of_both_is_read_only_once_the_order_is_known() -> None:
    x, rope = torch.randn(1, 17, 8), torch.randn(17, 8)
    assert readings(Joint(True), 12, None, hidden_states=x, rope=rope) == []
    ((call, right),) = readings(Joint(True), 12, True, hidden_states=x, rope=rope)
    assert right and torch.equal(call.picture, x[:, 5:])
    seen: list[Tensor] = []
    watched = AttentionCall(
        call.module,
        lambda **kwargs: seen.append(kwargs["hidden_states"]) or call.module(**kwargs),  # type: ignore[func-returns-value]
        call.args,
        call.kwargs,
        call.names,
        call.layout,
    )
    output = watched.with_picture(x[:, 5:9], torch.arange(4))
    assert torch.equal(seen[0][:, :5], x[:, :5]), "text comes through untouched"
    assert output.shape == (1, 9, 8) and watched.answer(output).shape == (1, 4, 8)


def test_a_module_that_looks_at_neighbours_is_found_out() -> None:
    class Neighbours(nn.Module):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return hidden_states + hidden_states.roll(1, 1)

    ((_, right),) = readings(Neighbours(), 12, None, hidden_states=torch.randn(1, 12, 4))
    assert not right


def test_a_mask_is_cut_along_both_axes() -> None:
    class Masked(nn.Module):
        def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
            scores = hidden_states @ hidden_states.mT + attention_mask
            return torch.softmax(scores, -1) @ hidden_states

    x, mask = torch.randn(1, 9, 4), 3 * torch.randn(1, 9, 9)
    ((call, right),) = readings(Masked(), 9, None, hidden_states=x, attention_mask=mask)
    assert right
    places = torch.tensor([1, 4, 8])
    expected = Masked()(x[:, places], mask[:, places][:, :, places])
    assert torch.equal(call.with_picture(x[:, places], places), expected)


def test_samples_are_cut_out_with_what_is_theirs() -> None:
    x, text, rope = torch.randn(3, 12, 8), torch.randn(3, 5, 8), torch.randn(17, 8)
    module = Joint(True)
    call = read(
        module,
        parameters_of(module),
        module,
        (x,),
        {"encoder_hidden_states": text, "rope": rope},
        (12,),
        True,
    )[0]
    row = call.row(1)
    assert torch.equal(row.tokens, x[1:2]) and row.kwargs["rope"] is rope
    assert torch.equal(row.kwargs["encoder_hidden_states"], text[1:2])


@pytest.mark.parametrize(
    ("shape", "config", "is_unet", "expected"),
    [
        ((1, 256, 4), {"patch_size": 2}, False, {256: None}),
        ((2, 4, 32, 24), {"patch_size": 2, "in_channels": 4}, False, {192: (1, 16, 12)}),
        ((1, 16, 5, 8, 8), {"patch_size": (1, 2, 2), "in_channels": 16}, False, {80: (5, 4, 4)}),
        ((1, 6, 4, 8, 8), {"patch_size": 2, "in_channels": 4}, False, {96: (6, 4, 4)}),
        ((1, 4, 8, 6), {}, True, {48: (1, 8, 6), 12: (1, 4, 3)}),
    ],
)
def test_the_lengths_of_a_pictures_sequences(
    shape: tuple[int, ...], config: dict[str, Any], is_unet: bool, expected: dict[int, Any]
) -> None:
    assert picture_grids(shape, config, is_unet) == expected


def test_importance_is_the_attention_that_tokens_receive() -> None:
    module = Attention(query_dim=16, heads=2, dim_head=8, bias=True).eval()
    x = torch.randn(2, 10, 16)
    with torch.no_grad():
        found = attention_received(module, x, queries=10)
        q, k = (
            part.reshape(2, 10, 2, 8).transpose(1, 2) for part in (module.to_q(x), module.to_k(x))
        )
        expected = torch.softmax(q @ k.mT / 8**0.5, -1).mean((1, 2))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
