"""Do consecutive plans agree? Distances between them where they overlap in time, and changes of mind.

Overlap error: both plans in one fixed frame, at the times of the newer one that the older also covers
(AlpaSim's plan deviation with uniform weights; its weights exp(-0.1 k) give `overlap_weighted_m`). A plan
that is constant in the world scores 0 however wrong it is: read it beside L2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import STEP_S
from sparseoccvla.geometry import headings_along, wrap_angle
from sparseoccvla.metrics.additive import STATE, Additive, zeros


@dataclass(frozen=True)
class PlacedPlan:
    """A plan and where the vehicle was when it was made."""

    t0_s: float
    fixed_from_base: tuple[float, float, float]  # x_m, y_m, yaw_rad of base_link at t0 in a fixed frame
    points_m: NDArray[np.floating]  # (S, 2) or (S, 3) in base_link at t0, every 0.5 s
    anchor: int = -1  # which of the anchors it came from, -1: unknown

    def times_s(self) -> NDArray[np.float64]:
        """(S + 1,) of t0 and the waypoints."""
        return self.t0_s + STEP_S * np.arange(len(self.points_m) + 1)

    def fixed_m(self) -> NDArray[np.float64]:
        """(S + 1, 2) in the fixed frame, the vehicle's place at t0 first."""
        x, y, yaw = self.fixed_from_base
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        local = np.concatenate([np.zeros((1, 2)), self.points_m[:, :2]])
        return local @ turn.T + (x, y)


_MEANS = (
    "overlap_m",
    "overlap_weighted_m",
    "final_overlap_m",
    "final_along_m",
    "final_across_m",
    "heading_jitter_rad",
)


@dataclass
class ConsistencyMetric(Additive):
    """Means over pairs of consecutive plans of one drive; use a new metric, or `restart`, for another."""

    max_gap_s: float = 1.0  # plans farther apart are not consecutive: they restart it
    sums: NDArray[np.float64] = field(default_factory=zeros(len(_MEANS)), metadata=STATE)
    pairs: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    seconds: NDArray[np.float64] = field(default_factory=zeros(()), metadata=STATE)  # between the pairs
    switches: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    anchored_pairs: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    anchored_seconds: NDArray[np.float64] = field(default_factory=zeros(()), metadata=STATE)

    def __post_init__(self) -> None:
        self._previous: PlacedPlan | None = None

    def restart(self) -> None:
        """The next plan has no predecessor: another scene, or a time jump."""
        self._previous = None

    def update(self, plan: PlacedPlan) -> None:
        """Add the next plan of a drive, compared with the one before.

        Raises:
            ValueError: it is not newer than the one before; call `restart` after a time jump.
        """
        before, self._previous = self._previous, plan
        if before is None:
            return
        gap_s = plan.t0_s - before.t0_s
        if gap_s <= 0:
            raise ValueError(
                f"a plan at {plan.t0_s:g} s after one at {before.t0_s:g} s; restart after a jump"
            )
        if gap_s > self.max_gap_s:
            return
        self.sums = self.sums + _compare(before, plan)
        self.pairs = self.pairs + 1
        self.seconds = self.seconds + gap_s
        if plan.anchor >= 0 and before.anchor >= 0:
            self.switches = self.switches + int(plan.anchor != before.anchor)
            self.anchored_pairs = self.anchored_pairs + 1
            self.anchored_seconds = self.anchored_seconds + gap_s

    def result(self) -> dict[str, Any]:
        """Means of `_MEANS`, anchor switches per second and per pair, and how many pairs; None: no pair."""
        pairs, anchored = int(self.pairs), int(self.anchored_pairs)
        figures: dict[str, Any] = {
            name: float(value / pairs) if pairs else None
            for name, value in zip(_MEANS, self.sums, strict=True)
        }
        figures["anchor_switches_per_s"] = float(self.switches / self.anchored_seconds) if anchored else None
        figures["anchor_switch_share"] = float(self.switches / anchored) if anchored else None
        return figures | {"pairs": pairs, "seconds": float(self.seconds)}


def _compare(before: PlacedPlan, now: PlacedPlan) -> NDArray[np.float64]:
    """The values of `_MEANS` for one pair."""
    times = now.times_s()[1:]
    common = times[times <= before.times_s()[-1] + 1e-6]
    old, new = (_at(plan, common) for plan in (before, now))
    apart = new - old
    distance = np.linalg.norm(apart, axis=1)
    weights = np.exp(-0.1 * np.arange(len(common)))
    heading = _heading(before, common[-1])
    along = apart[-1] @ (np.cos(heading), np.sin(heading))
    across = apart[-1] @ (-np.sin(heading), np.cos(heading))
    jitter = abs(float(wrap_angle(_heading(now, common[-1]) - heading)))
    return np.array(
        [distance.mean(), distance @ weights / weights.sum(), distance[-1], abs(along), abs(across), jitter]
    )


def _at(plan: PlacedPlan, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    known, points = plan.times_s(), plan.fixed_m()
    return np.stack([np.interp(times_s, known, column) for column in points.T], axis=1)


def _heading(plan: PlacedPlan, time_s: float) -> float:
    """Direction of travel on the step that leads to a time, in the fixed frame."""
    step = int(np.clip(np.searchsorted(plan.times_s(), time_s - 1e-6) - 1, 0, len(plan.points_m) - 1))
    return float(headings_along(plan.points_m[:, :2])[step] + plan.fixed_from_base[2])
