from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.errors import InputError
from sparseoccvla.metrics.pdm import (
    DrivingScene,
    PdmMetric,
    RedLight,
    Road,
    Track,
    baseline_plans,
    human_filtered,
    score_plan,
    with_extended_comfort,
)
from sparseoccvla.metrics.pdm_comfort import PdmVersion, comfort_terms, extended_comfort, history_comfort
from sparseoccvla.metrics.pdm_motion import State, interpolate_plan, lengthen, simulate, start_state
from sparseoccvla.metrics.polygons import along_path, contains, convex_touch, touches

V1, V2 = PdmVersion.V1, PdmVersion.V2
TIMES = 0.5 * np.arange(1, 9)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


CROSSING = rectangle(60, -1.75, 80, 5.25)
# Two lanes of one road, ours along y = 0, with a crossing 60 m ahead.
ROAD = Road(
    drivable=(rectangle(-20, -1.75, 60, 5.25), CROSSING, rectangle(80, -1.75, 120, 5.25)),
    lanes={
        "ours": rectangle(-20, -1.75, 60, 1.75),
        "other": rectangle(-20, 1.75, 60, 5.25),
        "ours across": rectangle(60, -1.75, 80, 1.75),
        "other across": rectangle(60, 1.75, 80, 5.25),
    },
    route=frozenset(["ours", "ours across"]),
    intersections=(CROSSING,),
    centerline=np.stack([np.arange(-20.0, 121), np.zeros(141)], axis=1),
)


def scene(speed_mps: float = 8.0, *tracks: Track, **rest) -> DrivingScene:
    return DrivingScene(start_state(speed_mps), ROAD, tracks, **rest)


def straight(speed_mps: float, y_m: float = 0.0) -> np.ndarray:
    return np.stack([speed_mps * TIMES, np.full(8, y_m), np.zeros(8)], axis=1)


def braking(speed_mps: float, deceleration: float) -> np.ndarray:
    t = np.minimum(TIMES, speed_mps / deceleration)
    return np.stack([speed_mps * t - deceleration * t**2 / 2, np.zeros(8), np.zeros(8)], axis=1)


def scores(plan: np.ndarray, where: DrivingScene, reference: np.ndarray | None = None):
    reference = straight(8.0) if reference is None else reference
    return tuple(score_plan(where, plan, reference, version) for version in (V1, V2))


def test_driving_a_free_lane_is_worth_one() -> None:
    v1, v2 = scores(straight(8.0), scene())
    assert (v1.score, v2.score) == (1.0, 1.0)
    assert v2.raw_progress_m == pytest.approx(32.0, abs=1e-6)


def test_running_into_a_standing_car_is_worth_nothing() -> None:
    v1, v2 = scores(straight(8.0), scene(8.0, Track.moving((25.0, 0, 0), (4.6, 1.9), (0, 0))))
    assert (v1.score, v2.score, v1.no_at_fault_collisions) == (0.0, 0.0, 0.0)
    assert v1.time_to_ttc_infraction_s < v1.time_to_at_fault_collision_s


def test_hitting_a_cone_halves_and_costs_time_to_collision() -> None:
    cone = Track.moving((25.0, 0, 0), (0.4, 0.4), (0, 0), movable=False)
    v1, v2 = scores(straight(8.0), scene(8.0, cone))
    assert v1.no_at_fault_collisions == 0.5
    # 0.5 * (5 EP + 0 TTC + 2 C) / 12 and 0.5 * (5 EP + 2 LK + 2 HC) / 14
    assert (v1.score, v2.score) == (pytest.approx(3.5 / 12), pytest.approx(4.5 / 14))


def test_standing_still_keeps_all_but_progress() -> None:
    still = np.zeros((8, 3))
    v1, v2 = scores(still, scene(0.0), reference=np.stack([1.0 * TIMES**2, 0 * TIMES, 0 * TIMES], axis=1))
    assert (v1.ego_progress, v2.ego_progress) == (0.0, 0.0)
    assert (v1.score, v2.score) == (pytest.approx(7 / 12), pytest.approx(9 / 14))
    assert with_extended_comfort(v2, 1.0).score == pytest.approx(11 / 16)


def test_being_hit_from_behind_while_standing_is_not_at_fault() -> None:
    behind = Track.moving((-14.0, 0, 0), (4.6, 1.9), (4.0, 0))
    _, v2 = scores(np.zeros((8, 3)), scene(0.0, behind))
    assert v2.no_at_fault_collisions == 1.0
    assert v2.time_to_collision_within_bound == 1.0


def test_a_standing_vehicle_is_not_at_fault_even_from_the_front() -> None:
    oncoming = Track.moving((14.0, 0, np.pi), (4.6, 1.9), (-4.0, 0))
    _, standing = scores(np.zeros((8, 3)), scene(0.0, oncoming))
    assert standing.no_at_fault_collisions == 1.0
    _, driving = scores(straight(8.0), scene(8.0, oncoming))
    assert driving.no_at_fault_collisions == 0.0


def test_a_side_hit_is_at_fault_only_across_lanes_or_off_the_road() -> None:
    beside = Track.moving((0.5, 2.6, 0), (4.6, 1.9), (8.0, -0.5))  # drifts into our side
    _, inside = scores(straight(8.0), scene(8.0, beside))
    assert inside.no_at_fault_collisions == 1.0
    across = replace(scene(8.0, beside), start=start_state(8.0, (0, 0.75, 0)))
    _, over = scores(straight(8.0, 0.75), across)
    assert over.no_at_fault_collisions == 0.0


def test_leaving_the_road_loses_everything() -> None:
    away = straight(8.0)
    away[:, 1] = -2.5 * np.clip(TIMES / 2, 0, 1)
    v1, v2 = scores(away, scene())
    assert (v1.drivable_area_compliance, v1.score, v2.score) == (0.0, 0.0, 0.0)


def test_the_oncoming_lane_counts_in_v2_only() -> None:
    over = straight(8.0)
    over[:, 1] = 2.6 * np.clip(TIMES / 2, 0, 1)
    v1, v2 = scores(over, scene())
    assert v1.driving_direction_compliance < 1
    assert v1.score > 0.95
    assert v2.score < 0.6


def test_a_red_connector_counts_in_v2_only_and_only_while_red() -> None:
    def at_the_light(red: bool) -> DrivingScene:
        light = RedLight(rectangle(60, -1.75, 80, 1.75), np.full(41, red))
        return replace(scene(8.0, lights=(light,)), start=start_state(8.0, (40, 0, 0)))

    plan = straight(8.0) + np.array([40.0, 0, 0])
    red, green = (score_plan(at_the_light(r), plan, plan, V2) for r in (True, False))
    assert (red.traffic_light_compliance, red.score) == (0.0, 0.0)
    assert (green.traffic_light_compliance, green.score) == (1.0, 1.0)
    assert score_plan(at_the_light(True), plan, plan, V1).score == 1.0


def test_keeping_a_meter_beside_the_center_line_fails_lane_keeping() -> None:
    v1, v2 = scores(straight(8.0, 0.6), replace(scene(), start=start_state(8.0, (0, 0.6, 0))))
    assert v1.score == pytest.approx(1.0, abs=1e-3)
    assert v2.lane_keeping == 0.0
    assert v2.score == pytest.approx(12 / 14, abs=1e-3)


def test_overlapping_a_standing_car_at_the_start_is_at_fault_at_once() -> None:
    v1, _ = scores(straight(8.0), scene(8.0, Track.moving((3.0, 0, 0), (4.6, 1.9), (0, 0))))
    assert (v1.no_at_fault_collisions, v1.time_to_at_fault_collision_s) == (0.0, 0.0)


def test_hard_braking_is_uncomfortable_in_v1_and_with_a_past_in_v2() -> None:
    where = scene(12.0)
    v1, v2 = scores(braking(12.0, 6.0), where, reference=straight(12.0))
    assert (v1.comfort, v2.history_comfort) == (0.0, 1.0)
    past = np.zeros((4, 11))
    past[:, State.X], past[:, State.VX] = 12.0 * np.array([-1.5, -1, -0.5, 0]), 12.0
    _, known = scores(braking(12.0, 6.0), replace(where, past_states=past), reference=straight(12.0))
    assert known.history_comfort == 0.0


def test_v1_smooths_a_slow_down_away_that_v2_finds_jerky() -> None:
    states = simulate(interpolate_plan(braking(10.0, 3.0), start_state(10.0)), start_state(10.0))
    assert comfort_terms(states, V1)["lon_jerk"]
    assert not comfort_terms(states, V2)["lon_jerk"]


def test_a_rough_past_fails_history_comfort() -> None:
    past = np.zeros((4, 11))
    past[:, State.X], past[:, State.VX], past[:, State.AX] = [-6, -4.5, -2.5, 0], [2, 4, 6, 8], 4.0
    cruise = simulate(interpolate_plan(straight(8.0), start_state(8.0)), start_state(8.0))
    assert history_comfort(cruise, past) == 0.0
    assert history_comfort(cruise, None) == 1.0
    calm = past.copy()
    calm[:, State.VX], calm[:, State.AX] = 8.0, 0.0
    assert history_comfort(cruise, calm) == 1.0


def test_extended_comfort_compares_what_two_plans_feel_like() -> None:
    def driven(plan: np.ndarray) -> np.ndarray:
        return simulate(interpolate_plan(plan, start_state(8.0)), start_state(8.0))

    cruise, slowing = driven(straight(8.0)), driven(braking(8.0, 2.0))
    assert extended_comfort(cruise, cruise, 0.5) == 1.0
    assert extended_comfort(slowing, cruise, 0.5) == 0.0
    with pytest.raises(ValueError, match="apart"):
        extended_comfort(cruise, cruise, 0.6)


def test_v2_sees_no_lateral_acceleration_in_a_driven_circle() -> None:
    # The public scorer's quirk, kept for parity: 7.2 m/s^2 sideways passes the lateral term.
    angle = 0.9 * np.arange(41) * 0.1
    states = np.zeros((41, 11))
    states[:, State.HEADING], states[:, State.VX], states[:, State.YAW_RATE] = angle, 8.0, 0.9
    assert comfort_terms(states, V2)["lat_accel"]


def test_human_failures_are_forgiven_only_where_they_are_outright() -> None:
    away = straight(8.0, 0.6)
    where = replace(scene(), start=start_state(8.0, (0, 0.6, 0)))
    _, score = scores(away, where)
    assert human_filtered(score, score).lane_keeping == 1.0
    assert human_filtered(score, score).score > score.score
    _, clean = scores(straight(8.0), scene())
    assert human_filtered(score, clean) == score


def test_baseline_rows_are_never_move_and_constant_velocity() -> None:
    rows = baseline_plans(scene(8.0))
    assert set(rows) == {"never_move", "constant_velocity"}
    _, rolling = scores(rows["constant_velocity"], scene())
    _, still = scores(rows["never_move"], scene())
    assert rolling.score == 1.0
    assert still.ego_progress < 0.7


def test_the_tracker_lags_behind_a_stopping_plan() -> None:
    states = simulate(interpolate_plan(braking(8.0, 2.0), start_state(8.0)), start_state(8.0))
    assert states[-1, State.X] == pytest.approx(17.42, abs=0.01)
    assert states[-1, State.VX] == pytest.approx(0.97, abs=0.01)


def test_a_three_second_plan_is_lengthened_and_not_accepted_as_it_is() -> None:
    short = straight(8.0)[:6]
    with pytest.raises(ValueError, match=r"ends at 3 s.*lengthen"):
        score_plan(scene(), short, short, V2)
    np.testing.assert_allclose(lengthen(short), straight(8.0))
    turning = np.array([[2.0, 0.1, 0.1], [4.0, 0.5, 0.2]])
    assert lengthen(turning, 3)[-1, 2] == pytest.approx(0.3)


def test_agents_known_for_too_short_a_time_are_refused() -> None:
    track = Track.moving((25.0, 0, 0), (4.6, 1.9), (0, 0))
    with pytest.raises(ValueError, match="known for 45 steps"):
        scores(straight(8.0), scene(8.0, replace(track, corners_m=track.corners_m[:45])))


def test_a_road_without_lanes_is_refused() -> None:
    with pytest.raises(InputError, match="0 lanes"):
        replace(ROAD, lanes={})


def test_means_over_scenes_leave_unknown_parts_unknown() -> None:
    metric = PdmMetric(V1)
    single = [scores(straight(speed), scene(speed))[0] for speed in (8.0, 4.0)]
    for score in single:
        metric.update(score)
    result = metric.result()
    assert single[1].ego_progress < 1
    assert result["ego_progress"] == pytest.approx((single[0].ego_progress + single[1].ego_progress) / 2)
    assert result["lane_keeping"] is None


def test_a_polygons_border_is_outside_and_touching_counts_as_contact() -> None:
    lane = rectangle(0, 0, 4, 2)
    points = np.array([[1, 1], [0, 1], [4, 2], [5, 1], [2, 2]], float)
    assert contains(lane, points).tolist() == [True, False, False, False, False]
    bent = np.array([[0, 0], [4, 0], [4, 4], [3, 4], [3, 1], [0, 1]], float)
    assert contains(bent, np.array([[1, 2], [3.5, 3]])).tolist() == [False, True]
    assert bool(convex_touch(lane, rectangle(4, 0, 5, 2)))
    assert not bool(convex_touch(lane, rectangle(4.01, 0, 5, 2)))
    assert touches(rectangle(1, 0.2, 2, 0.4), bent)  # wholly inside
    assert not touches(rectangle(1, 2, 2, 3), bent)  # in the bend, inside its bounding box


def test_progress_along_a_path_is_arc_length_and_distance_is_sideways() -> None:
    path = np.array([[0, 0], [10, 0], [10, 0], [10, 10]], float)
    arc, distance = along_path(path, np.array([[4, 1], [12, 5]], float))
    assert arc.tolist() == [4.0, 15.0]
    assert distance.tolist() == [1.0, 2.0]
