from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.agents import (
    LIDAR_FORWARD_M,
    AgentFutures,
    AgentKind,
    from_base_link,
    omnidrive_raster,
    vad_raster,
)
from sparseoccvla.metrics.planning import (
    PlanningMetric,
    PlanningProtocol,
    PlanSample,
    footprint,
    score_steps,
)

ALL = list(PlanningProtocol)
ALONG = np.stack([np.zeros(6), 3.0 * np.arange(1, 7)], axis=1)  # straight ahead at 6 m/s


def standing(x_m: float, y_m: float, kind: AgentKind = AgentKind.VEHICLE, size=(4.5, 1.9)) -> AgentFutures:
    """One agent that stands at x right, y forward, heading forward."""
    return AgentFutures(
        np.tile([[x_m, y_m]], (1, 6, 1)).reshape(1, 6, 2),
        np.full((1, 6), np.pi / 2),
        np.array([size[0]]),
        np.array([size[1]]),
        np.array([kind]),
        np.ones((1, 6), bool),
    )


def sample(predicted=ALONG, driven=ALONG, agents: AgentFutures | None = None) -> PlanSample:
    agents = agents if agents is not None else standing(30.0, -40.0)
    return PlanSample(
        np.asarray(predicted, float),
        np.asarray(driven, float),
        raster=vad_raster(agents),
        fine_raster=omnidrive_raster(agents),
        agents=agents,
    )


def result(plan: PlanSample, protocol: PlanningProtocol) -> dict:
    metric = PlanningMetric(protocol)
    metric.update(plan)
    return metric.result()


def test_the_footprint_of_the_public_evaluators_is_32_cells_of_4_by_2_m() -> None:
    cells = footprint(0.5, 0.5)
    assert len(cells) == 32
    assert (cells.min(axis=0).tolist(), cells.max(axis=0).tolist()) == ([97, 98], [104, 101])


def test_l2_is_averaged_up_to_the_horizon_except_by_uniad_which_takes_the_step() -> None:
    driven = ALONG + np.stack([np.arange(1, 7), np.zeros(6)], axis=1)  # 1, 2, ... 6 m apart
    for protocol in ALL:
        figures = result(sample(driven=driven), protocol)
        expected = [2, 4, 6] if protocol is PlanningProtocol.UNIAD else [1.5, 2.5, 3.5]
        assert [figures[f"L2_{h}"] for h in ("1s", "2s", "3s")] == pytest.approx(expected)
        assert figures["L2_avg"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("protocol", ALL)
def test_a_plan_into_a_standing_car_collides_and_one_that_stops_does_not(protocol: PlanningProtocol) -> None:
    car = standing(0.0, 14.0)
    stops = np.minimum(ALONG, [0, 7.0])
    through, before = result(sample(ALONG, stops, car), protocol), result(sample(stops, stops, car), protocol)
    assert through["obj_box_col_3s" if protocol is not PlanningProtocol.UNIAD else "obj_box_col_2s"] > 0
    assert all(before[f"obj_box_col_{h}"] == 0 for h in ("1s", "2s", "3s"))
    free = result(sample(ALONG, stops), protocol)
    assert all(free[f"obj_box_col_{h}"] == 0 for h in ("1s", "2s", "3s"))


def test_omnidrive_counts_any_hit_up_to_a_horizon_and_others_the_share_of_steps() -> None:
    car, stops = standing(0.0, 14.0), np.minimum(ALONG, [0, 7.0])
    assert result(sample(ALONG, stops, car), PlanningProtocol.OMNIDRIVE)["obj_box_col_3s"] == 1.0
    assert result(sample(ALONG, stops, car), PlanningProtocol.VAD)["obj_box_col_3s"] == pytest.approx(2 / 6)
    exact = result(sample(ALONG, stops, car), PlanningProtocol.EXACT)
    assert (exact["obj_box_col_3s"], exact["obj_box_col_any_3s"]) == (pytest.approx(2 / 6), 1.0)


@pytest.mark.parametrize("protocol", ALL)
def test_steps_where_the_driver_collides_are_left_out(protocol: PlanningProtocol) -> None:
    car = standing(0.0, 14.0)
    both = score_steps(sample(ALONG, ALONG + 0.05, car), protocol)
    assert both.driven_hits.any()
    assert not both.box_hits.any()
    aside = score_steps(sample(ALONG, ALONG + np.array([6, 0]), car), protocol)  # the control
    assert aside.box_hits.any()


def test_a_turned_box_reaches_where_an_unturned_one_does_not() -> None:
    # Driving to the right past a post 1.6 m ahead of the path: the unturned box is 4 m long that way.
    rightward = np.stack([3.0 * np.arange(1, 7), np.zeros(6)], axis=1)
    post = standing(9.0, 2.0, size=(0.6, 0.6))
    away = np.stack([-3.0 * np.arange(1, 7), np.zeros(6)], axis=1)
    assert score_steps(sample(rightward, away, post), PlanningProtocol.VAD).box_hits.any()
    for protocol in (PlanningProtocol.SPARSEDRIVE, PlanningProtocol.EXACT):
        assert not score_steps(sample(rightward, away, post), protocol).box_hits.any()


def test_people_count_where_the_protocol_draws_them() -> None:
    person, stops = standing(0.0, 12.0, AgentKind.HUMAN, (0.8, 0.8)), np.minimum(ALONG, [0, 4.0])
    hit = {p: bool(score_steps(sample(ALONG, stops, person), p).box_hits.any()) for p in ALL}
    assert hit.pop(PlanningProtocol.OMNIDRIVE) is False
    assert all(hit.values())


def test_a_vehicle_that_stands_keeps_its_heading() -> None:
    # Millimeter noise must not turn the box sideways into the car beside it.
    noise = 0.004 * np.random.default_rng(0).standard_normal((6, 2))
    beside = standing(2.2, 0.5)
    steps = score_steps(sample(noise, noise, beside), PlanningProtocol.EXACT)
    assert not steps.box_hits.any()
    assert not steps.driven_hits.any()


def test_uniad_masks_unknown_steps_and_others_refuse_them() -> None:
    driven = ALONG + np.array([1.0, 0.0])
    partly = replace(sample(driven=driven), driven_valid=np.array([True, True, False, False, False, False]))
    figures = result(partly, PlanningProtocol.UNIAD)
    assert (figures["L2_1s"], figures["L2_2s"]) == (pytest.approx(1.0), 0.0)
    with pytest.raises(UnscorableError, match="no valid future: 2 of 6"):
        result(partly, PlanningProtocol.VAD)
    with pytest.raises(UnscorableError, match="no valid future: 0 of 6"):
        result(replace(partly, driven_valid=np.zeros(6, bool)), PlanningProtocol.UNIAD)


@pytest.mark.parametrize(
    ("change", "protocol", "message"),
    [
        ({"predicted_m": np.zeros((5, 2))}, "vad", r"shape \(5, 2\)"),
        ({"predicted_m": np.full((6, 2), np.nan)}, "vad", "prediction has 12 values that are not finite"),
        ({"driven_m": np.full((6, 2), np.inf)}, "vad", "driven path has 12 values"),
        ({"raster": None}, "stp3", "needs obstacles as raster"),
        ({"fine_raster": None}, "omnidrive", "needs obstacles as fine_raster"),
        ({"agents": None}, "exact", "needs obstacles as agents"),
        ({"raster": np.zeros((6, 10, 10), bool)}, "uniad", r"raster has shape \(6, 10, 10\)"),
    ],
)
def test_unusable_samples_are_refused_and_add_nothing(change: dict, protocol: str, message: str) -> None:
    metric = PlanningMetric(PlanningProtocol(protocol))
    with pytest.raises(UnscorableError, match=message):
        metric.update(replace(sample(), **change))
    assert metric.samples == 0


def test_base_link_poses_become_lidar_positions_x_right_y_forward() -> None:
    straight, turned = from_base_link(np.array([[5.0, 1.0, 0.0], [5.0, 1.0, np.pi / 2]]))
    np.testing.assert_allclose(straight, [-1.0, 5.0, np.pi / 2])
    np.testing.assert_allclose(turned, [-1.0 - LIDAR_FORWARD_M, 5.0 - LIDAR_FORWARD_M, np.pi])
    np.testing.assert_allclose(from_base_link(np.array([5.0, 1.0, 0.3]), 0.0)[:2], [-1.0, 5.0])


def test_agents_without_annotation_at_a_step_are_not_there() -> None:
    car = standing(0.0, 14.0)
    gone = replace(car, valid=np.zeros((1, 6), bool))
    assert vad_raster(car).any()
    assert not vad_raster(gone).any()
    stops = np.minimum(ALONG, [0, 7.0])
    assert not score_steps(sample(ALONG, stops, gone), PlanningProtocol.EXACT).box_hits.any()
