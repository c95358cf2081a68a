import numpy as np
import pytest

from sparseoccvla.metrics.consistency import ConsistencyMetric, PlacedPlan

STEPS = np.arange(1, 7)


def plan(t0_s: float, offset_m: float = 0.0, anchor: int = 0, yaw: float = 0.0) -> PlacedPlan:
    """Constant 4 m/s along the fixed x axis, moved sideways by `offset_m`."""
    ahead = 2.0 * STEPS
    points = np.stack([ahead, np.full(6, offset_m)], axis=1)
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return PlacedPlan(t0_s, (4.0 * t0_s, 0.0, yaw), points @ turn.T, anchor)


def figures(*plans: PlacedPlan) -> dict:
    metric = ConsistencyMetric()
    for one in plans:
        metric.update(one)
    return metric.result()


def test_plans_that_are_constant_in_the_world_agree_whatever_the_vehicles_heading() -> None:
    result = figures(plan(0.0), plan(0.5, yaw=0.7), plan(1.0, yaw=-1.2))
    assert result["overlap_m"] == pytest.approx(0, abs=1e-9)
    assert result["heading_jitter_rad"] == pytest.approx(0, abs=1e-9)
    assert result["pairs"] == 2


def test_a_sideways_jump_is_an_overlap_error_across_not_along() -> None:
    result = figures(plan(0.0), plan(0.5, offset_m=1.0))
    assert result["overlap_m"] == pytest.approx(1.0)
    assert result["overlap_weighted_m"] == pytest.approx(1.0)
    assert (result["final_across_m"], result["final_along_m"]) == (pytest.approx(1.0), pytest.approx(0.0))


def test_frame_by_frame_differences_of_the_numbers_are_not_what_counts() -> None:
    # In its own frame each plan is the same list of numbers; in the world the second goes elsewhere.
    first, same_numbers = plan(0.0), PlacedPlan(0.5, (2.0, 0.0, 0.3), plan(0.0).points_m)
    assert figures(first, same_numbers)["overlap_m"] > 1.0


def test_plans_are_compared_between_their_waypoints_too() -> None:
    assert figures(plan(0.0), plan(0.2))["overlap_m"] == pytest.approx(0, abs=1e-9)


def test_anchor_switches_are_counted_per_second_of_driving() -> None:
    result = figures(plan(0.0, anchor=3), plan(0.5, anchor=3), plan(1.0, anchor=5), plan(1.5, anchor=3))
    assert result["anchor_switches_per_s"] == pytest.approx(2 / 1.5)
    assert result["anchor_switch_share"] == pytest.approx(2 / 3)
    assert figures(plan(0.0, anchor=-1), plan(0.5, anchor=-1))["anchor_switches_per_s"] is None


def test_a_gap_or_a_restart_separates_drives_and_going_back_is_an_error() -> None:
    assert figures(plan(0.0), plan(5.0))["pairs"] == 0
    metric = ConsistencyMetric()
    metric.update(plan(0.0))
    metric.restart()
    metric.update(plan(0.5))
    assert metric.result()["overlap_m"] is None
    with pytest.raises(ValueError, match="restart after a jump"):
        metric.update(plan(0.4))


def test_drives_merge_by_pairs() -> None:
    calm, nervous = ConsistencyMetric(), ConsistencyMetric()
    for one in (plan(0.0), plan(0.5), plan(1.0)):
        calm.update(one)
    for one in (plan(0.0), plan(0.5, offset_m=3.0)):
        nervous.update(one)
    calm.merge(nervous)
    assert calm.result()["overlap_m"] == pytest.approx(1.0)
