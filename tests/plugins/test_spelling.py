"""Suggestions for misspelt words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.plugins.spelling import did_you_mean, suggest

NAMES = ["easycache", "teacache", "fbcache", "block_sparse", "taylorseer"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tea-cache", "teacache"),
        ("TeaCache", "teacache"),
        ("Tea Cache", "teacache"),
        ("block-sparse", "block_sparse"),
        ("BlockSparse", "block_sparse"),
        ("easycahce", "easycache"),
        ("taylor", "taylorseer"),
        ("fbcache2", "fbcache"),
        ("quantise", None),
        ("fb", None),
        ("", None),
    ],
)
def test_the_meant_word_is_found(word: str, meant: str | None) -> None:
    assert suggest(word, NAMES) == meant


@given(st.text(), st.lists(st.text(), max_size=5))
def test_a_suggestion_is_a_choice_or_nothing(word: str, choices: list[str]) -> None:
    assert suggest(word, choices) in [None, *choices]


@given(st.sampled_from(NAMES))
def test_a_correct_word_suggests_itself(word: str) -> None:
    assert suggest(word, NAMES) == word


def test_the_middle_of_a_sentence() -> None:
    assert did_you_mean("treshold", ["threshold"]) == ", did you mean 'threshold'?"
    assert did_you_mean("zzz", ["threshold"]) == "."
