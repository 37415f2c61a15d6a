"""The named backgrounds of the training pictures: "on a blue background" can be checked."""

__all__ = ["COLOURS", "WHITE"]

WHITE = (255, 255, 255)

# sRGB; a picture without a colour in its caption stands on white.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (220, 50, 47),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 60),
    "green": (60, 170, 80),
    "blue": (50, 110, 220),
    "purple": (130, 70, 190),
    "pink": (255, 150, 190),
    "brown": (120, 80, 50),
    "cyan": (120, 210, 230),
}
