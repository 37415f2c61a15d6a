"""Text score: prefers the right caption, is blind to batch order, refuses what does not match."""

import pytest
import torch

from skipstep.pipelines.metrics.text import AlignmentHead, load_alignment_head, text_score


def disc(colour: tuple[float, float, float]) -> torch.Tensor:
    """Return a disc of one colour on white: the likeness of a coloured-circle-like thing."""
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    inside = ((rows - 64) ** 2 + (columns - 64) ** 2 < 3000).float()
    paint = torch.tensor(colour)[:, None, None] * 2 - 1
    return inside * paint + (1 - inside)


def heart(colour: tuple[float, float, float]) -> torch.Tensor:
    """Return the curve (x^2 + y^2 - 1)^3 = x^2 y^3 filled with a colour, on white."""
    axis = torch.linspace(-1.4, 1.4, 128)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    inside = ((x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0).float()
    paint = torch.tensor(colour)[:, None, None] * 2 - 1
    return inside * paint + (1 - inside)


def test_a_drawn_heart_is_a_heart_and_not_a_frog_or_a_house() -> None:
    torch.set_num_threads(1)
    picture = heart((0.9, 0.1, 0.1))[None]
    prompts = ["red heart", "frog", "house", "banana"]
    scores = text_score(picture.expand(4, -1, -1, -1), prompts)
    assert scores.argmax() == 0


def test_scores_are_cosines_and_follow_the_pictures_order() -> None:
    images = torch.stack([heart((0.9, 0.1, 0.1)), disc((0.2, 0.7, 0.3))])
    prompts = ["red heart, flat style", "green apple, flat style"]
    scores = text_score(images, prompts)
    assert scores.shape == (2,)
    assert scores.abs().max() <= 1
    torch.testing.assert_close(text_score(images.flip(0), prompts[::-1]), scores.flip(0))


def test_other_sizes_and_types_are_judged_at_128_pixels() -> None:
    image = heart((0.9, 0.1, 0.1))[None]
    large = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
    small, big = text_score(image, ["red heart"]), text_score(large.bfloat16(), ["red heart"])
    torch.testing.assert_close(small, big, rtol=0, atol=0.1)


def test_head_returns_unit_vectors() -> None:
    head = load_alignment_head()
    assert isinstance(head, AlignmentHead)
    a, b = head.embed_images(torch.rand(3, 1280)), head.embed_sentences(torch.randn(3, 384))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(b.norm(dim=1), torch.ones(3))


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images but 1 prompts: pass one prompt for each image"):
        text_score(torch.zeros(2, 3, 128, 128), ["pizza"])
