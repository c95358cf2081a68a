"""Every age and every wait in the stack: what is measured, against which limit, and what follows.

Nodes take limits and levels from here, `docs/frames.md` shows the same rows, and a test finds any
duration among the settings that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import Enum, IntEnum
from typing import Any

from sparseoccvla.config import (
    GuardConfig,
    MemoryConfig,
    OdometryConfig,
    ReasoningConfig,
    SynchronizerConfig,
    WatchConfig,
)


class Clock(Enum):
    """What a duration is measured with."""

    STAMPS = "stamp against stamp"
    NODE = "node clock"
    STEADY = "steady clock"


class Level(IntEnum):
    """What the diagnosis says beyond the limit; names and numbers are those of DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Budget:
    """One duration. It runs from `start` to `end`; beyond the limit `then` happens."""

    name: str
    start: str
    end: str
    clock: Clock
    config: type
    setting: str  # field of `config` that holds the limit
    level: Level
    then: str

    @property
    def key(self) -> str:
        """Where the limit is set, e.g. ``GuardConfig.validity_s``."""
        return f"{self.config.__name__}.{self.setting}"


_S, _N, _T = Clock.STAMPS, Clock.NODE, Clock.STEADY

BUDGETS = (
    Budget(
        "camera spread", "t0 + camera's phase", "camera stamp", _S,
        SynchronizerConfig, "tolerance_s", Level.WARN, "picture belongs to another set",
    ),
    Budget(
        "set deadline", "first arrival of the set", "now", _N,
        SynchronizerConfig, "deadline_s", Level.WARN, "set is closed by policy",
    ),
    Budget(
        "held picture", "stamp of the repeated picture", "t0", _S,
        SynchronizerConfig, "max_hold_s", Level.WARN, "camera is MISSING",
    ),
    Budget(
        "camera time jump", "camera stamp", "newest stamp of that camera", _S,
        SynchronizerConfig, "time_jump_s", Level.WARN, "pictures and memory are cleared",
    ),
    Budget(
        "gap between sets", "t0 of the set before", "t0", _S,
        SynchronizerConfig, "max_gap_s", Level.WARN, "memory is cleared",
    ),
    Budget(
        "extrapolated pose", "nearest odometry stamp", "camera stamp", _S,
        OdometryConfig, "max_extrapolation_s", Level.ERROR, "set is dropped",
    ),
    Budget(
        "hole in odometry", "odometry stamp", "next odometry stamp", _S,
        OdometryConfig, "max_gap_s", Level.ERROR, "set is dropped",
    ),
    Budget(
        "odometry time jump", "odometry stamp", "newest odometry stamp", _S,
        OdometryConfig, "time_jump_s", Level.WARN, "poses and memory are cleared",
    ),
    Budget(
        "odometry age", "newest odometry stamp", "now", _N,
        OdometryConfig, "max_age_s", Level.ERROR, "guard brakes: NO_ODOMETRY",
    ),
    Budget(
        "history frame", "t0 - 0.5 k", "t0 of the feature set", _S,
        MemoryConfig, "tolerance_s", Level.OK, "frame is masked",
    ),
    Budget(
        "reasoning age", "t0 of the token", "t0", _S,
        ReasoningConfig, "max_age_s", Level.WARN, "null token: DEGRADED_NO_REASONING",
    ),
    Budget(
        "wait for reasoning", "queries received", "now", _N,
        ReasoningConfig, "deadline_s", Level.WARN, "null token: DEGRADED_NO_REASONING",
    ),
    Budget(
        "proposal age", "t0", "now", _N,
        GuardConfig, "max_proposal_age_s", Level.ERROR, "guard brakes: STALE",
    ),
    Budget(
        "proposal from the future", "now", "t0", _N,
        GuardConfig, "max_future_s", Level.ERROR, "guard brakes: STALE",
    ),
    Budget(
        "proposal timeout", "last accepted proposal", "now", _N,
        GuardConfig, "proposal_timeout_s", Level.ERROR, "guard brakes: NO_PROPOSAL",
    ),
    Budget(
        "validity", "publication", "valid_until", _N,
        GuardConfig, "validity_s", Level.OK, "controller stops on its own",
    ),
    Budget(
        "unmet input", "start, or last report", "now", _T,
        WatchConfig, "report_after_s", Level.WARN, "missing topics are named",
    ),
    Budget(
        "tolerated fault", "first sign of a fault", "now", _T,
        WatchConfig, "tolerated_s", Level.WARN, "diagnosis leaves OK",
    ),
)  # fmt: skip


def limits_s(configs: Iterable[Any]) -> dict[str, float]:
    """Limit in seconds by budget name, for the settings given; budgets of other settings are left out."""
    by_type = {type(config): config for config in configs}
    return {
        budget.name: getattr(by_type[budget.config], budget.setting)
        for budget in BUDGETS
        if budget.config in by_type
    }


def markdown_table() -> str:
    """The rows with their default limits, as `docs/frames.md` shows them."""
    defaults = {item.config: {f.name: f.default for f in fields(item.config)} for item in BUDGETS}
    head = "| what | from | to | measured | limit | level | beyond it |\n|---|---|---|---|---|---|---|"
    rows = (
        f"| {b.name} | {b.start} | {b.end} | {b.clock.value} | "
        f"`{b.key}` {defaults[b.config][b.setting]:g} s | {b.level.name} | {b.then} |"
        for b in BUDGETS
    )
    return "\n".join([head, *rows])
