"""Background colours: exact on palette colours, deaf to the object, refusals in words."""

import pytest
import torch

from skipstep.pipelines.metrics.background import background_colours, border_colour
from skipstep.pipelines.reference.palette import COLOURS, WHITE

PALETTE = {"white": WHITE, **COLOURS}


def picture(colour: tuple[int, int, int], height: int = 63, width: int = 100) -> torch.Tensor:
    flat = torch.tensor(colour, dtype=torch.float32) / 127.5 - 1
    return flat[:, None, None].expand(3, height, width).clone()


def test_every_palette_colour_is_recognised_as_itself_under_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([picture(colour) for colour in PALETTE.values()])
    noisy = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    assert background_colours(noisy, PALETTE) == list(PALETTE)


def test_object_in_the_middle_and_on_a_third_of_the_border_does_not_count() -> None:
    image = picture(COLOURS["blue"])
    image[:, 4:-4, 4:-4] = picture(COLOURS["red"])[:, 4:-4, 4:-4]
    image[:, :, :20] = picture(COLOURS["red"])[:, :, :20]
    assert background_colours(image[None], PALETTE) == ["blue"]


def test_border_colour_is_the_median_in_0_to_255() -> None:
    images = torch.stack([picture((10, 200, 30)), picture((255, 0, 255))])
    expected = torch.tensor([[10.0, 200.0, 30.0], [255.0, 0.0, 255.0]])
    torch.testing.assert_close(border_colour(images), expected, rtol=0, atol=1e-3)


def test_bfloat16_pictures_are_accepted() -> None:
    assert background_colours(picture(COLOURS["cyan"])[None].bfloat16(), PALETTE) == ["cyan"]


@pytest.mark.usefixtures("as_users_see_it")
def test_wrong_shape_border_and_palette_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"\[b, 3, height, width\] is needed"):
        border_colour(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="a border of 4 pixels does not fit into 8 x 8"):
        border_colour(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="the palette is empty"):
        background_colours(torch.zeros(1, 3, 16, 16), {})
