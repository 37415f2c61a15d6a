"""Speed against fidelity as a picture: every setting a dot, every peer's front a line."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from skipstep.benchmarks.peers.arms import OURS, STEPS_ALONE
from skipstep.benchmarks.peers.fronts import Point, front

__all__ = ["draw"]

WIDTH, HEIGHT, SCALE = 620, 460, 2
LEFT, RIGHT, TOP, BOTTOM = 58, 130, 44, 48
BACK, INK, SOFT, LINES = "#fbfaf7", "#1d1f24", "#6b6f77", "#e3e0d8"
COLOURS = {OURS: "#0b7a75", STEPS_ALONE: "#9a9da3"}
OTHERS = ("#b4690e", "#5b4fb0", "#b0413e", "#3f7d20")
SPEED_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_SPEED = 6.5
# Above this, pictures look the same to everybody.
LARGEST_DECIBELS = 60.0


def draw(panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> Image.Image:
    """Return the picture: one panel a title, in it one front a peer; fidelity is PSNR in dB."""
    count = max(1, len(panels))
    image = Image.new("RGB", (WIDTH * count * SCALE, HEIGHT * SCALE), BACK)
    for place, (title, peers) in enumerate(panels.items()):
        draw_panel(image, place * WIDTH, title, peers)
    return image


def draw_panel(
    image: Image.Image, offset: int, title: str, peers: Mapping[str, Sequence[Point]]
) -> None:
    """Draw axes, dots, fronts and their names."""
    pen = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(12 * SCALE), ImageFont.load_default(15 * SCALE)
    means = [min(point.mean, LARGEST_DECIBELS) for points in peers.values() for point in points]
    low = 5 * math.floor(min(means, default=20) / 5)
    high = max(low + 10, 5 * math.ceil(max(means, default=40) / 5))

    def place(speed: float, decibels: float) -> tuple[float, float]:
        across = math.log(speed) / math.log(LARGEST_SPEED)
        up = (min(decibels, high) - low) / (high - low)
        x = offset + LEFT + across * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return x * SCALE, y * SCALE

    pen.text(((offset + LEFT) * SCALE, 14 * SCALE), title, fill=INK, font=large)
    for decibels in range(low, high + 1, 5):
        pen.line([place(1, decibels), place(LARGEST_SPEED, decibels)], fill=LINES, width=SCALE)
        x, y = place(1, decibels)
        pen.text((x - 8 * SCALE, y), f"{decibels} dB", fill=SOFT, font=small, anchor="rm")
    for speed in SPEED_TICKS:
        x, y = place(speed, low)
        pen.line([(x, y), (x, y + 4 * SCALE)], fill=SOFT, width=SCALE)
        pen.text((x, y + 7 * SCALE), f"{speed:g}x", fill=SOFT, font=small, anchor="mt")
    x, y = place(math.sqrt(LARGEST_SPEED), low)
    caption = "uncached FLOPs of the denoiser / computed FLOPs"
    pen.text((x, y + 26 * SCALE), caption, fill=SOFT, font=small, anchor="mt")

    spare = iter(OTHERS)
    ends = []
    for name, points in peers.items():
        colour = COLOURS.get(name) or next(spare, INK)
        inside = [point for point in points if point.speed <= LARGEST_SPEED and point.mean >= low]
        for point in inside:
            dot(pen, place(point.speed, point.mean), 2, colour)
        line = [place(point.speed, point.mean) for point in front(inside)]
        if line:
            pen.line(line, fill=colour, width=2 * SCALE, joint="curve")
            for spot in line:
                dot(pen, spot, 4, colour)
            ends.append((line[-1][1], name, colour))
    below = float(TOP * SCALE)
    for height, name, colour in sorted(ends):
        below = max(below + 16 * SCALE, height)
        x = (offset + WIDTH - RIGHT + 10) * SCALE
        pen.text((x, below), name, fill=colour, font=small, anchor="lm")


def dot(pen: ImageDraw.ImageDraw, spot: tuple[float, float], radius: int, colour: str) -> None:
    """Draw a dot."""
    (x, y), r = spot, radius * SCALE
    pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
