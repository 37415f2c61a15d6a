"""Draw a training run's loss over the pictures it has seen."""

from PIL import Image, ImageDraw

__all__ = ["Row", "draw_curve"]

# Image views, seconds, mean loss since the row before.
Row = tuple[int, float, float]


def draw_curve(rows: list[Row]) -> Image.Image:
    """Return the training loss over image views, both axes linear."""
    width, height, margin = 720, 360, 48
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    views = [row[0] for row in rows]
    # The first rows, before the loss has fallen, would flatten the rest.
    top = 0.6
    right = max(views)

    def place(x: float, y: float) -> tuple[float, float]:
        across = margin + (width - 2 * margin) * x / right
        return across, height - margin - (height - 2 * margin) * min(y, top) / top

    for tick in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        pen.line([place(0, tick), place(right, tick)], "lightgrey")
        pen.text((8, place(0, tick)[1] - 6), f"{tick:.1f}", "black")
    for quarter in range(5):
        x = right * quarter / 4
        pen.text((place(x, 0)[0] - 14, height - margin + 6), f"{x / 1000:.0f} k", "black")
    pen.line([place(v, row[2]) for v, row in zip(views, rows, strict=True)], "navy", 2)
    pen.text((margin, 12), "training loss, mean of 25 steps (above 0.6 cut)", "black")
    pen.text((width - 150, height - 24), "image views", "black")
    return sheet
