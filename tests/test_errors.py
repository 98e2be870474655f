"""What is advised instead of a wrong word."""

from __future__ import annotations

from pscl_hpc.errors import did_you_mean


def test_the_nearest_word_is_advised() -> None:
    assert did_you_mean("stpes", ["steps", "decay"]) == "; did you mean 'steps'?"


def test_a_few_words_are_all_named() -> None:
    assert did_you_mean("x", ["steps", "decay"]) == "; choose one of: steps, decay"
    assert did_you_mean("x", []) == ""


def test_of_many_words_the_first_are_named_and_the_others_counted() -> None:
    text = did_you_mean("zzz", [f"steel/{index:05}" for index in range(10_000)])
    assert text.startswith("; choose one of: steel/00000, ")
    assert text.endswith("steel/00007 and 9992 more")
