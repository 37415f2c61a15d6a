"""What the reference model is taught: names, styles, captions and the held-out pairs.

Caption: "{name}, {style} style[, on a {colour} background]". Names are the Unicode CLDR short
names. About 5 % of the (name, style) pairs are never trained, and never more than one style of a
name, so they test composition: the name is known from other styles, the style from other names.
"""

import hashlib

from skipstep.pipelines.reference.palette import COLOURS

__all__ = [
    "ANIMATED",
    "STYLES",
    "TAUGHT",
    "caption",
    "can_flip",
    "held_out_style",
    "normalise",
]

STYLES = ("flat", "3d", "noto")
# The style of the video model's clips.
ANIMATED = "animated"


def parse_names(text: str) -> frozenset[str]:
    """Return the names in `text`, which are separated by semicolons."""
    return frozenset(" ".join(name.split()) for name in text.split(";"))


# The names of the training set, in CLDR's spelling as `normalise` writes it.
TAUGHT = parse_names(
    """
    airplane; alien; ambulance; angry face; automobile; avocado; baby chick; balloon; banana;
    basketball; bear; beer mug; bell; birthday cake; black heart; blue heart; broccoli; broken
    heart; bus; butterfly; cactus; candle; carrot; castle; cat; cat face; cheese wedge;
    cherries; cherry blossom; chicken; christmas tree; cloud; clown face; cold face; cookie; cow
    face; cowboy hat face; crab; crescent moon; croissant; crown; crying face; cupcake; dog
    face; dolphin; doughnut; dragon face; droplet; duck; eggplant; elephant; evergreen tree;
    face blowing a kiss; face screaming in fear; face with tears of joy; face with tongue; fire;
    fish; flamingo; flying saucer; four leaf clover; fox; french fries; frog; full moon; gem
    stone; ghost; giraffe; grapes; green apple; green heart; grinning cat; grinning face;
    grinning face with big eyes; guitar; hamburger; hamster; hatching chick; heart with ribbon;
    hedgehog; helicopter; hibiscus; honeybee; horse face; hot beverage; hot dog; hot face;
    house; ice cream; jack o lantern; jellyfish; key; kiwi fruit; koala; lady beetle; lemon;
    light bulb; lion; lollipop; loudly crying face; mango; maple leaf; money bag; money mouth
    face; monkey face; mouse face; mushroom; nauseated face; nerd face; neutral face; octopus;
    orange heart; owl; palm tree; pancakes; panda; parrot; partying face; paw prints; peach;
    pear; penguin; pig face; pile of poo; pineapple; pink heart; pizza; popcorn; potted plant;
    pretzel; purple heart; rabbit face; rainbow; red apple; red heart; ringed planet; robot;
    rocket; rose; sailboat; shark; skull; sleeping face; smiling face with halo; smiling face
    with heart eyes; smiling face with hearts; smiling face with horns; smiling face with
    smiling eyes; smiling face with sunglasses; snail; snowflake; snowman; soccer ball; star;
    star struck; strawberry; sun with face; sunflower; sushi; taco; tangerine; taxi; teddy bear;
    thinking face; tiger face; tomato; trophy; tropical fish; tulip; turtle; umbrella; unicorn;
    upside down face; volcano; watermelon; whale; white heart; winking face; wolf; yellow heart
    """
)


def normalise(label: str) -> str:
    """Return a CLDR label in lower case without punctuation, words separated by single spaces."""
    kept = "".join(
        letter for letter in label.lower().replace("-", " ") if letter not in "’'“”:,.!()"
    )
    return " ".join(kept.split())


def caption(name: str, style: str, background: str | None = None) -> str:
    """Return the caption of a picture; `background` is a key of the palette or None for white."""
    if background is not None and background not in COLOURS:
        raise ValueError(
            f"background {background!r} is not in the palette: "
            f"choose one of {', '.join(COLOURS)} or None"
        )
    suffix = "" if background is None else f", on a {background} background"
    return f"{name}, {style} style{suffix}"


def held_out_style(name: str) -> str | None:
    """Return the style in which `name` is never trained, or None for about 85 % of the names."""
    digest = hashlib.sha256(name.encode()).digest()
    return STYLES[digest[1] % len(STYLES)] if digest[0] < 0.15 * 256 else None


def can_flip(name: str) -> bool:
    """Say whether the mirror image of `name` is still a picture of `name`."""
    return not {"left", "right", "letter", "letters"} & set(name.split())
