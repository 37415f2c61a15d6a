"""A comparison as one picture: a row for each prompt, a column for each arm, labelled."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from skipstep.pipelines.compare.comparison import ArmResult, Comparison
from skipstep.pipelines.compare.text import in_pairs
from skipstep.pipelines.pictures import save_png, to_image

__all__ = ["draw_sheet", "save_sheet"]

CELL = 256
GAP = 12
SIDE = 190
HEAD = 80
BACK, INK, SOFT, ACCENT, COUNTER = "#fbfaf7", "#1d1f24", "#6b6f77", "#0b7a75", "#b4690e"
MOST_ROWS = 12


def save_sheet(comparison: Comparison, path: Path) -> None:
    """Save the sheet as a PNG; write nothing when no pictures were kept."""
    sheet = draw_sheet(comparison)
    if sheet is not None:
        save_png(sheet, path, {"compare": comparison.headline()})


def draw_sheet(comparison: Comparison) -> Image.Image | None:
    """Return the sheet of the first prompts, or None when no pictures were kept."""
    arms = [arm for arm in comparison.arms if comparison.pictures.get(arm.name)]
    if not arms:
        return None
    arms = in_pairs(arms)
    rows = min(MOST_ROWS, len(comparison.pictures[arms[0].name]))
    sample = fitted(comparison, arms[0], 0)
    cell_width, cell_height = sample.size
    width = SIDE + len(arms) * (cell_width + GAP) + GAP
    height = HEAD + rows * (cell_height + GAP) + GAP
    sheet = Image.new("RGB", (width, height), BACK)
    draw = ImageDraw.Draw(sheet)
    name_font, small_font = ImageFont.load_default(17), ImageFont.load_default(14)
    for column, arm in enumerate(arms):
        left = SIDE + column * (cell_width + GAP)
        colour = {"baseline": INK, "plugins": ACCENT, "fewer steps": COUNTER}[arm.kind]
        lines = wrap(draw, arm.name, name_font, cell_width)[:2]
        top = HEAD - 10 - 20 * (len(lines) + 1)
        for line in lines:
            draw.text((left, top), line, fill=colour, font=name_font)
            top += 20
        draw.text((left, top), summary(arm), fill=SOFT, font=small_font)
    for row in range(rows):
        top = HEAD + row * (cell_height + GAP)
        for place, line in enumerate(
            wrap(draw, comparison.prompts[row], name_font, SIDE - 2 * GAP)[: cell_height // 20]
        ):
            draw.text((GAP, top + 20 * place), line, fill=INK, font=name_font)
        for column, arm in enumerate(arms):
            sheet.paste(fitted(comparison, arm, row), (SIDE + column * (cell_width + GAP), top))
    return sheet


def fitted(comparison: Comparison, arm: ArmResult, row: int) -> Image.Image:
    """Return a picture with its longer side at CELL pixels."""
    picture = to_image(comparison.pictures[arm.name][row])
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def summary(arm: ArmResult) -> str:
    """Return one short line on an arm: its cost and its fidelity."""
    if arm.kind == "baseline":
        return f"{arm.steps} steps"
    psnr = arm.estimates["psnr"]
    fidelity = "identical" if psnr.mean is None else f"{psnr.mean:.1f} dB"
    return f"{arm.fraction:.0%} of the blocks, {fidelity}"


def wrap(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> list[str]:
    """Break a text into lines of at most `width` pixels, where possible at spaces and marks."""
    lines, line = [], ""
    for letter in " ".join(text.split()):
        if draw.textlength(line + letter, font=font) > width:
            cut = max(line.rfind(mark) for mark in " ,:") + 1
            cut = cut if cut > 0 else len(line)
            lines.append(line[:cut].rstrip())
            line = line[cut:]
        line = (line + letter).lstrip()
    return [*lines, line]
