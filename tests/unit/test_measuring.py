"""What benchmarks count with."""

import pytest

from benchmarks.measuring import age_ms


def test_the_followed_trajectory_is_as_old_as_its_set_until_a_newer_one_comes() -> None:
    """Sets at 0, 1 and 2 s answered after 0.5 s: the age runs from 0.5 s up to 1.5 s, again and again."""
    ages = age_ms({0: 0.0, 1: 1.0, 2: 2.0}, {0: 0.5, 1: 1.5}, every_s=0.25)
    assert ages == pytest.approx([500, 750, 1000, 1250, 500, 750])


def test_a_set_without_an_answer_lets_the_last_one_grow_older() -> None:
    ages = age_ms({0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}, {0: 0.5, 2: 2.5}, every_s=0.5)
    assert ages == pytest.approx([500, 1000, 1500, 2000, 500])


def test_an_older_answer_that_comes_late_changes_nothing() -> None:
    ages = age_ms({0: 0.0, 1: 1.0, 2: 3.0}, {0: 2.0, 1: 1.5}, every_s=0.5)
    assert ages == pytest.approx([500, 1000, 1500])
