"""Settings of everything around the networks. A default is written here and nowhere else.

ROS parameters, their descriptions and ranges, and the parameter table in the docs are generated
from these dataclasses; YAML files only override. The networks' own settings stand on top of the
file of each model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from sparseoccvla.contracts import CAMERA_NAMES
from sparseoccvla.errors import InputError


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that also carries what a parameter descriptor needs."""
    metadata = {"doc": doc, "unit": unit, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


class ConfigError(InputError):
    """A setting has a value it can't have; the text says which, what came and what is allowed."""


def check(config: Any) -> None:
    """Raise `ConfigError` for the first setting outside its range or choices."""
    for item in fields(config):
        value, limits = getattr(config, item.name), item.metadata
        where = f"{type(config).__name__}.{item.name} is {value!r}"
        if limits.get("choices") and value not in limits["choices"]:
            raise ConfigError(f"{where}, wanted one of {', '.join(limits['choices'])}")
        low, high = limits.get("low"), limits.get("high")
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if numeric and ((low is not None and value < low) or (high is not None and value > high)):
            unit = f" {limits['unit']}" if limits.get("unit") else ""
            raise ConfigError(f"{where}{unit}, wanted {low} to {high}{unit}")


class Checked:
    """Base of the settings below: an impossible value never gets past the constructor."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SynchronizerConfig(Checked):
    """How camera messages become one set. The reference camera's stamp is t0."""

    cameras: tuple[str, ...] = setting(CAMERA_NAMES, "Cameras of a set, first present one is the reference.")
    stamp_offsets_s: tuple[float, ...] = setting(
        (),
        "Added to each camera's stamp to make it mid-exposure, in the order of cameras; empty: none.",
        unit="s",
    )
    tolerance_s: float = setting(
        0.06, "Farthest a camera's stamp may lie from t0 (nuScenes: 43 ms).", unit="s", low=0.0, high=0.5
    )
    deadline_s: float = setting(
        0.1, "Longest wait for late cameras after a set's first arrival.", unit="s", low=0.0, high=5.0
    )
    policy: str = setting(
        "partial",
        "Cameras missing at the deadline: drop the set, hold their last picture, blank, or partial (masked).",
        choices=("drop", "hold", "blank", "partial"),
    )
    max_hold_s: float = setting(0.5, "Oldest picture that `hold` repeats.", unit="s", low=0.0, high=5.0)
    max_pending_sets: int = setting(4, "Incomplete sets kept; the oldest is closed first.", low=1, high=64)
    time_jump_s: float = setting(
        1.0, "A stamp this far behind the newest of its camera is a time jump.", unit="s", low=0.05, high=60.0
    )
    max_gap_s: float = setting(
        3.0, "A set this long after the one before clears temporal memory.", unit="s", low=0.1, high=60.0
    )


@dataclass(frozen=True)
class MemoryConfig(Checked):
    """The ring of past feature sets."""

    tolerance_s: float = setting(
        0.15,
        "History frame k is the one nearest t0 - 0.5 k within this, else masked.",
        unit="s",
        low=0.0,
        high=0.25,
    )
    slack_s: float = setting(0.3, "Kept beyond the oldest frame asked for.", unit="s", low=0.0, high=2.0)


@dataclass(frozen=True)
class OdometryConfig(Checked):
    """The buffer of vehicle poses in the odom frame."""

    buffer_s: float = setting(6.0, "Length kept.", unit="s", low=1.0, high=60.0)
    max_extrapolation_s: float = setting(
        0.15, "Farthest a camera stamp may lie outside odometry.", unit="s", low=0.0, high=1.0
    )
    wait_s: float = setting(
        0.05, "Longest wait for an odometry sample at or after t0.", unit="s", low=0.0, high=1.0
    )
    jump_m: float = setting(
        2.0,
        "A pose this far from where the twist leads is a jump: memory is cleared.",
        unit="m",
        low=0.1,
        high=100.0,
    )
    max_age_s: float = setting(0.5, "Odometry older than this is lost.", unit="s", low=0.05, high=10.0)


@dataclass(frozen=True)
class ReasoningConfig(Checked):
    """How the planner pairs its frame with a reasoning token."""

    policy: str = setting(
        "latest",
        "latest: newest token not too old, else the null token; same_frame: wait for this frame's token.",
        choices=("latest", "same_frame", "off"),
    )
    max_age_s: float = setting(1.5, "Oldest token that `latest` uses.", unit="s", low=0.0, high=10.0)
    deadline_s: float = setting(0.5, "Longest wait of `same_frame`.", unit="s", low=0.0, high=30.0)


@dataclass(frozen=True)
class GuardConfig(Checked):
    """What a trajectory must be to leave the stack, and how the vehicle brakes when none is."""

    rate_hz: float = setting(10.0, "Rate of the guard's own timer.", unit="Hz", low=1.0, high=100.0)
    proposal_timeout_s: float = setting(
        0.6, "Without a proposal for this long the guard brakes.", unit="s", low=0.05, high=5.0
    )
    max_proposal_age_s: float = setting(
        0.8, "A proposal whose cameras are older than this is stale.", unit="s", low=0.05, high=5.0
    )
    validity_s: float = setting(
        0.5,
        "How long after publication a controller may follow the trajectory.",
        unit="s",
        low=0.05,
        high=3.0,
    )
    max_speed_mps: float = setting(40.0, "Fastest feasible speed.", unit="m/s", low=1.0, high=80.0)
    max_acceleration_mps2: float = setting(
        6.0, "Largest feasible gain of speed.", unit="m/s^2", low=0.5, high=15.0
    )
    max_deceleration_mps2: float = setting(
        9.0, "Largest feasible loss of speed.", unit="m/s^2", low=0.5, high=15.0
    )
    max_lateral_acceleration_mps2: float = setting(
        7.0, "Largest feasible speed times yaw rate.", unit="m/s^2", low=0.5, high=15.0
    )
    max_curvature_per_m: float = setting(0.25, "Tightest feasible turn.", unit="1/m", low=0.01, high=1.0)
    max_start_speed_error_mps: float = setting(
        5.0, "Farthest the first step's speed may lie from the vehicle's.", unit="m/s", low=0.1, high=40.0
    )
    braking_mps2: float = setting(4.0, "Deceleration of the fallback.", unit="m/s^2", low=0.5, high=9.0)


@dataclass(frozen=True)
class WatchConfig(Checked):
    """Start-up and health reports."""

    report_after_s: float = setting(
        5.0,
        "Unmet inputs are named after this long, then again at this period.",
        unit="s",
        low=0.5,
        high=60.0,
    )
    tolerated_s: float = setting(
        1.0, "A fault shorter than this is no warning.", unit="s", low=0.0, high=60.0
    )


@dataclass(frozen=True)
class ModelSource(Checked):
    """Which weights run where."""

    model: str = setting("tiny", "A folder with manifest.json, or the name of one under models/.")
    backend: str = setting(
        "torch",
        "Who computes: torch, or fake (deterministic numpy, for tests and latency).",
        choices=("torch", "fake"),
    )
    threads: int = setting(0, "CPU threads of this node, 0: the library's choice.", low=0, high=256)
    seed: int = setting(
        0, "Seed of weights that are not trained, and of the diffusion noise.", low=0, high=2**31 - 1
    )
