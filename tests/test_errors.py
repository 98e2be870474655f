"""Suggestions for an unknown word."""

from __future__ import annotations

from pscl_hpc.errors import MOST_OPTIONS, did_you_mean


def test_the_nearest_word_is_suggested() -> None:
    text = did_you_mean("stpes", ["steps", "decay"])
    assert "'steps'" in text
    assert "decay" not in text


def test_a_few_words_are_all_listed() -> None:
    text = did_you_mean("x", ["steps", "decay"])
    assert "steps, decay" in text
    assert did_you_mean("x", []) == ""


def test_of_many_words_the_first_are_listed_and_the_others_counted() -> None:
    text = did_you_mean("zzz", [f"steel/{index:05}" for index in range(10_000)])
    assert text.count("steel/") == MOST_OPTIONS
    assert "steel/00000" in text
    assert str(10_000 - MOST_OPTIONS) in text
