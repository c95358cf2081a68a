"""The ego state at t0: right against known motion and real drives, and blind to what comes after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseoccvla.contracts import NS_PER_S, PAST_POSE_TIMES_S, Command, EgoState
from sparseoccvla.ego_state import EgoHistory, MotionSample, admlp_vector, samples_from_poses
from sparseoccvla.geometry import arc_pose, planar_matrix

START_NS = 100 * NS_PER_S


def drive(
    rate_hz: float,
    seconds: float = 4.0,
    speed: float = 8.0,
    acceleration: float = 1.5,
    curvature: float = 0.02,
    start: tuple[float, float, float] = (500.0, -300.0, 2.0),
) -> list[MotionSample]:
    """A vehicle that speeds up on a circle, from an arbitrary pose, sampled at a rate."""
    times = np.arange(round(seconds * rate_hz) + 1) / rate_hz
    length = speed * times + acceleration * times**2 / 2
    return [
        MotionSample(
            START_NS + round(time * NS_PER_S),
            planar_matrix(*start) @ planar_matrix(*arc_pose(s, curvature * s)),
            speed + acceleration * time,
            curvature * (speed + acceleration * time),
        )
        for time, s in zip(times, length, strict=True)
    ]


def true_past(speed: float, acceleration: float, curvature: float) -> np.ndarray:
    """(4, 3) where the vehicle of `drive` was, seen from where it is with `speed`."""
    times = np.asarray(PAST_POSE_TIMES_S)
    length = speed * times + acceleration * times**2 / 2
    return arc_pose(length, curvature * length)


@pytest.mark.parametrize("rate_hz", [2.0, 10.0, 12.0, 50.0, 100.0])
def test_known_motion_comes_out_at_any_rate(rate_hz: float) -> None:
    samples = drive(rate_hz)
    ego = EgoHistory(samples).at(samples[-1].stamp_ns).validate()
    assert ego.motion_valid
    assert ego.past_valid.all()
    assert ego.speed_mps == pytest.approx(samples[-1].speed_mps, abs=1e-9)
    assert ego.acceleration_mps2 == pytest.approx(1.5, abs=1e-6)
    assert ego.yaw_rate_radps == pytest.approx(samples[-1].yaw_rate_radps)
    np.testing.assert_allclose(ego.past_poses, true_past(ego.speed_mps, 1.5, 0.02), atol=0.005)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0, 10.0, 100.0]))
def test_nothing_after_t0_is_looked_at(seed: int, rate_hz: float) -> None:
    rng = np.random.default_rng(seed)
    samples = drive(rate_hz)
    t0_ns = samples[-1].stamp_ns - int(rng.integers(0, NS_PER_S))
    clean = EgoHistory(samples).at(t0_ns)
    wild = [
        s
        if s.stamp_ns <= t0_ns
        else MotionSample(s.stamp_ns, planar_matrix(*rng.normal(0, 99, 3)), 99.0, 9.0)
        for s in samples
    ]
    seen = EgoHistory(wild).at(t0_ns)
    cut = EgoHistory([s for s in samples if s.stamp_ns <= t0_ns]).at(t0_ns)
    for other in (seen, cut):
        assert replace(other, past_poses=0, past_valid=0) == replace(clean, past_poses=0, past_valid=0)
        np.testing.assert_array_equal(other.past_poses, clean.past_poses)
        np.testing.assert_array_equal(other.past_valid, clean.past_valid)


def test_the_state_is_carried_from_the_newest_sample_to_t0() -> None:
    samples = drive(10.0)
    last = samples[-1]
    ego = EgoHistory(samples).at(last.stamp_ns + 80_000_000)
    assert ego.speed_mps == pytest.approx(last.speed_mps + 1.5 * 0.08)
    np.testing.assert_allclose(ego.past_poses, true_past(ego.speed_mps, 1.5, 0.02), atol=0.02)


def test_one_wild_speed_does_not_move_the_acceleration() -> None:
    samples = drive(10.0)
    samples[-3] = replace(samples[-3], speed_mps=40.0)
    assert EgoHistory(samples).at(samples[-1].stamp_ns).acceleration_mps2 == pytest.approx(1.5, abs=0.2)
    # The control: a least-squares line through the same speeds is far off.
    speeds = [s.speed_mps for s in samples[-6:]]
    assert abs(np.polyfit(np.arange(6) / 10, speeds, 1)[0] - 1.5) > 3


def test_a_braking_vehicle_stops_and_does_not_turn_back() -> None:
    samples = [
        MotionSample(START_NS + i * NS_PER_S // 10, np.eye(4), max(0.2 - 0.04 * i, 0.04), 0.0)
        for i in range(5)
    ]
    samples[-1] = replace(samples[-1], speed_mps=0.02)
    ego = EgoHistory(samples).at(samples[-1].stamp_ns + 140_000_000)
    assert ego.acceleration_mps2 < 0
    assert ego.speed_mps == 0.0


def test_reversing_has_a_negative_speed() -> None:
    samples = drive(10.0, speed=-2.0, acceleration=0.0)
    ego = EgoHistory(samples).at(samples[-1].stamp_ns)
    assert ego.speed_mps == pytest.approx(-2.0)
    assert ego.past_poses[0, 0] == pytest.approx(1.0, abs=0.01)


def test_a_lost_odometry_makes_everything_invalid() -> None:
    samples = drive(10.0)
    ego = EgoHistory(samples).at(samples[-1].stamp_ns + 160_000_000).validate()
    assert not ego.motion_valid
    assert not ego.past_valid.any()
    assert (ego.speed_mps, ego.acceleration_mps2) == (0.0, 0.0)
    assert not EgoHistory([]).at(START_NS).motion_valid


def test_at_the_start_of_a_drive_the_missing_past_is_marked() -> None:
    samples = drive(10.0)
    first = EgoHistory(samples).at(START_NS)
    assert not first.motion_valid, "one speed tells no acceleration"
    assert not first.past_valid.any()
    after = EgoHistory(samples).at(START_NS + round(1.2 * NS_PER_S))
    assert after.motion_valid
    assert after.past_valid.tolist() == [True, True, False, False]
    assert (after.past_poses[2:] == 0).all()


def test_keyframes_that_jitter_reach_back_two_seconds() -> None:
    """nuScenes keyframes are 0.5 s apart give or take 50 ms: -2 s may lie just before the first."""
    stamps = [0.0, 0.45, 0.95, 1.5, 1.95]
    samples = [
        MotionSample(START_NS + round(t * NS_PER_S), planar_matrix(10 * t, 0, 0), 10.0, 0.0) for t in stamps
    ]
    ego = EgoHistory(samples).at(samples[-1].stamp_ns)
    assert ego.past_valid.all()
    np.testing.assert_allclose(ego.past_poses[:, 0], [-5, -10, -15, -20], atol=1e-6)


def test_poses_are_not_interpolated_over_a_hole() -> None:
    samples = [s for s in drive(10.0) if not 1.6 < (s.stamp_ns - START_NS) / NS_PER_S < 3.0]
    ego = EgoHistory(samples).at(samples[-1].stamp_ns)
    # -1 s is a sample at the edge of the hole, -1.5 and -2 lie inside it.
    assert ego.past_valid.tolist() == [True, True, False, False]


def test_steering_is_the_newest_one_known_and_not_stale() -> None:
    samples = drive(10.0)
    last_ns = samples[-1].stamp_ns
    assert not EgoHistory(samples).at(last_ns).steering_valid
    samples[-3] = replace(samples[-3], steering_rad=0.1)
    ego = EgoHistory(samples).at(last_ns)
    assert (ego.steering_rad, ego.steering_valid) == (0.1, True)
    old = [replace(s, steering_rad=None) for s in samples]
    old[-10] = replace(old[-10], steering_rad=0.1)
    assert not EgoHistory(old).at(last_ns).steering_valid


def test_poses_in_three_dimensions_are_seen_from_above() -> None:
    samples = drive(10.0, curvature=0.0)
    pitched = np.array([[np.cos(0.05), 0, np.sin(0.05)], [0, 1, 0], [-np.sin(0.05), 0, np.cos(0.05)]])
    lift = np.eye(4)
    lift[:3, :3] = pitched
    ego = EgoHistory([replace(s, odom_from_base=lift @ s.odom_from_base) for s in samples]).at(
        samples[-1].stamp_ns
    )
    np.testing.assert_allclose(ego.past_poses, true_past(ego.speed_mps, 1.5, 0.0), atol=0.01)


@pytest.mark.parametrize(("rate_hz", "tolerance"), [(2.0, 1e-6), (10.0, 1e-6), (50.0, 1e-6)])
def test_twist_from_poses_is_exact_for_steady_acceleration(rate_hz: float, tolerance: float) -> None:
    truth = drive(rate_hz, curvature=0.0)
    made = samples_from_poses([s.stamp_ns for s in truth], [s.odom_from_base for s in truth])
    assert len(made) == len(truth) - 1
    for sample, true in list(zip(made, truth[1:], strict=True))[round(0.6 * rate_hz) + 1 :]:
        assert sample.speed_mps == pytest.approx(true.speed_mps, abs=tolerance)


def test_twist_from_poses_does_not_look_ahead() -> None:
    truth = drive(10.0)
    stamps, poses = [s.stamp_ns for s in truth], [s.odom_from_base for s in truth]
    before = samples_from_poses(stamps, poses)
    poses[30:] = [planar_matrix(0.0, 0.0, 0.0)] * len(poses[30:])
    after = samples_from_poses(stamps, poses)
    assert [s.speed_mps for s in before[:29]] == [s.speed_mps for s in after[:29]]
    assert before[29].speed_mps != after[29].speed_mps


def test_admlp_layout_is_a_cmd_v_x() -> None:
    ego = replace(EgoState.fake(speed_mps=8.0), acceleration_mps2=1.0, yaw_rate_radps=0.2)
    poses = ego.past_poses.copy()
    poses[3] = (-16.0, 2.0, 0.3)
    vector = admlp_vector(replace(ego, past_poses=poses), Command.RIGHT)
    assert (vector.shape, vector.dtype) == ((21,), np.float32)
    np.testing.assert_allclose(vector[:3], [0, 1.0, 0])
    np.testing.assert_allclose(vector[3:6], [0, 1, 0])
    np.testing.assert_allclose(vector[6:9], [0, 8.0, 0.2])
    np.testing.assert_allclose(vector[9:12], [-2.0, -16.0, 0.3])  # oldest first; y left becomes x right
    np.testing.assert_allclose(vector[18:], [0, -4.0, 0])
    assert admlp_vector(ego, Command.UNKNOWN)[3:6].sum() == 0


# --- real drives


@pytest.mark.real_data
@pytest.mark.parametrize("scene", ["0061", "0103", "0553", "0757", "0916", "1077"])
def test_past_poses_of_real_drives_are_the_recorded_ones(real_data, scene: str) -> None:
    """At 10 Hz the recorded poses 5, 10, 15 and 20 rows back are the past poses, whatever t0."""
    recorded = np.load(real_data / "trajectories" / f"scene-{scene}.npz", allow_pickle=False)
    pose = np.column_stack([recorded["ego_xyz_10hz"][:, :2], recorded["ego_heading_10hz"]])
    stamps = [START_NS + i * NS_PER_S // 10 for i in range(len(pose))]
    samples = samples_from_poses(stamps, [planar_matrix(*row) for row in pose])
    history = EgoHistory(samples)
    for i in range(21, len(pose)):
        ego = history.at(stamps[i])
        assert ego.motion_valid
        assert ego.past_valid.all()
        for row, back in enumerate((5, 10, 15, 20)):
            c, s = np.cos(pose[i, 2]), np.sin(pose[i, 2])
            dx, dy = pose[i - back, :2] - pose[i, :2]
            expected = (c * dx + s * dy, -s * dx + c * dy, pose[i - back, 2] - pose[i, 2])
            np.testing.assert_allclose(ego.past_poses[row, :2], expected[:2], atol=1e-9)
            assert np.sin(ego.past_poses[row, 2] - expected[2]) == pytest.approx(0, abs=1e-9)


@pytest.mark.real_data
@pytest.mark.parametrize("scene", ["0061", "0916", "1077"])
def test_keyframes_of_real_drives_give_nearly_the_same_past(real_data, scene: str) -> None:
    """2 Hz keyframes against the 10 Hz path, at stamps between two keyframes' own."""
    recorded = np.load(real_data / "trajectories" / f"scene-{scene}.npz", allow_pickle=False)
    pose = np.column_stack([recorded["ego_xyz_10hz"][:, :2], recorded["ego_heading_10hz"]])
    stamps = [START_NS + i * NS_PER_S // 10 for i in range(len(pose))]
    dense = EgoHistory(samples_from_poses(stamps, [planar_matrix(*row) for row in pose]))
    sparse = EgoHistory(samples_from_poses(stamps[::5], [planar_matrix(*row) for row in pose[::5]]))
    errors, speeds = [], []
    for i in range(25, len(pose) - 10, 5):
        t0_ns = stamps[i] + 40_000_000
        a, b = dense.at(t0_ns), sparse.at(t0_ns)
        assert b.motion_valid
        errors.append(np.abs(a.past_poses[:, :2] - b.past_poses[:, :2]).max())
        speeds.append(abs(a.speed_mps - b.speed_mps))
    assert np.median(errors) < 0.05
    assert np.median(speeds) < 0.4
