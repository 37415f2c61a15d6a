"""Find the word that was meant."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "suggest"]


def plain(word: str) -> str:
    """Drop what people mix up: case, dashes, underscores and spaces."""
    return "".join(letter for letter in word.lower() if letter not in "-_ ")


def suggest(word: str, choices: Iterable[str]) -> str | None:
    """Pick the choice that is most likely meant, or none.

    Spelled the same but for case, dashes and underscores wins; then the closest by difflib's ratio
    of at least 0.6; then a choice that begins with the word, or that the word begins with.

    >>> suggest("Tea-Cache", ["easycache", "teacache"])
    'teacache'
    >>> suggest("sparse", ["attention"]) is None
    True
    """
    known = {plain(choice): choice for choice in choices}
    given = plain(word)
    if given in known:
        return known[given]
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    if close:
        return known[close[0]]
    if len(given) < 3:
        return None
    starts = [name for name in known if name.startswith(given) or given.startswith(name)]
    return known[min(starts, key=len)] if starts else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Write the suggestion as the middle of a sentence: ", did you mean 'x'?" or "."."""
    choice = suggest(word, choices)
    return f", did you mean {choice!r}?" if choice else "."
