"""The table of ages and budgets has every duration, and the docs show the same rows."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from sparseoccvla import config
from sparseoccvla.budgets import BUDGETS, limits_s, markdown_table

# Lengths and corrections that are in seconds but are no age, wait or limit on a message.
NOT_BUDGETS = {
    "SynchronizerConfig.stamp_offsets_s",
    "SynchronizerConfig.phases_s",
    "MemoryConfig.slack_s",
    "MemoryConfig.min_spacing_s",
    "OdometryConfig.buffer_s",
    "OdometryConfig.acceleration_window_s",
}
CONFIGS = (
    config.SynchronizerConfig,
    config.MemoryConfig,
    config.OdometryConfig,
    config.ReasoningConfig,
    config.GuardConfig,
    config.WatchConfig,
)


def test_every_duration_among_the_settings_has_a_row() -> None:
    durations = {
        f"{cls.__name__}.{item.name}"
        for cls in CONFIGS
        for item in fields(cls)
        if item.metadata["unit"] == "s"
    }
    assert {budget.key for budget in BUDGETS} == durations - NOT_BUDGETS
    assert durations >= NOT_BUDGETS


def test_names_are_unique_and_limits_are_the_settings() -> None:
    assert len({budget.name for budget in BUDGETS}) == len(BUDGETS)
    limits = limits_s([config.GuardConfig(validity_s=1.25), config.ReasoningConfig()])
    assert limits["validity"] == 1.25
    assert limits["reasoning age"] == config.ReasoningConfig().max_age_s
    assert "camera spread" not in limits


def test_a_plan_stays_valid_until_the_guard_has_noticed_that_no_other_comes() -> None:
    guard = config.GuardConfig()
    assert guard.validity_s >= guard.proposal_timeout_s + 1 / guard.rate_hz


def test_the_docs_show_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "frames.md").read_text(encoding="utf-8")
    if markdown_table() not in page:
        pytest.fail(f"docs/frames.md does not show the table; put this into it:\n{markdown_table()}")
