"""Poses of any recent moment, stretched only so far; jumps and losses are noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.config import OdometryConfig
from sparseoccvla.contracts import NS_PER_S, ContractError
from sparseoccvla.geometry import PoseError, arc_pose, planar_matrix, planar_pose
from sparseoccvla.odometry import OdometryBuffer

START_NS = 100 * NS_PER_S
SPEED, RATE = 10.0, 0.2


def pose_of(time_s: float) -> np.ndarray:
    """A circle at 10 m/s."""
    return planar_matrix(*arc_pose(SPEED * time_s, RATE * time_s))


def fill(buffer: OdometryBuffer, times_s: np.ndarray | list[float]) -> list[str]:
    return [
        reason
        for time in times_s
        if (reason := buffer.add(START_NS + round(time * NS_PER_S), pose_of(time), SPEED, RATE))
    ]


def at(buffer: OdometryBuffer, time_s: float) -> np.ndarray:
    return buffer.pose(START_NS + round(time_s * NS_PER_S))


def test_poses_are_interpolated_at_each_cameras_own_stamp() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    assert fill(buffer, np.arange(0, 2, 0.01)) == []
    for time in (0.0, 0.5049, 1.2345, 1.99):
        np.testing.assert_allclose(at(buffer, time), pose_of(time), atol=1e-3)
    assert buffer.counters.extrapolated == 0


@pytest.mark.parametrize("beyond_s", [0.05, 0.15, -0.1])
def test_extrapolation_follows_the_twist_and_is_counted(beyond_s: float) -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, np.arange(0, 1.001, 0.01))
    time = beyond_s if beyond_s < 0 else 1 + beyond_s
    np.testing.assert_allclose(at(buffer, time), pose_of(time), atol=1e-6)
    assert buffer.counters.extrapolated == 1
    assert buffer.counters.longest_extrapolation_s == pytest.approx(abs(beyond_s))


def test_extrapolation_does_not_amplify_the_noise_of_poses() -> None:
    rng = np.random.default_rng(0)
    buffer = OdometryBuffer(OdometryConfig())
    errors, naive = [], []
    for i in range(200):
        noisy = pose_of(i / 100) @ planar_matrix(*rng.normal(0, (0.01, 0.01, 0.001)))
        buffer.add(START_NS + i * NS_PER_S // 100, noisy, SPEED, RATE)
        if i > 10:
            time = i / 100 + 0.15
            errors.append(np.hypot(*(at(buffer, time) - pose_of(time))[:2, 3]))
            a, b = buffer.samples[-2].odom_from_base, buffer.samples[-1].odom_from_base
            naive.append(np.hypot(*((b + 15 * (b - a)) - pose_of(time))[:2, 3]))
    assert np.mean(errors) < 0.03
    assert np.mean(naive) > 5 * np.mean(errors)


def test_a_pose_too_far_outside_is_refused_and_counted() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    with pytest.raises(PoseError, match=r"no pose at all.*is odometry published"):
        at(buffer, 0)
    fill(buffer, np.arange(0, 1, 0.01))
    with pytest.raises(PoseError, match=r"odometry covers .* 0.210 s short, at most 0.15 s"):
        at(buffer, 1.2)
    assert buffer.counters.refused == 2


def test_a_hole_is_not_interpolated_over() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, [0.0, 0.1, 1.1, 1.2])
    with pytest.raises(PoseError, match=r"hole of 1.000 s there, at most 0.75 s is interpolated over"):
        at(buffer, 0.5)
    np.testing.assert_allclose(at(buffer, 1.1), pose_of(1.1))
    np.testing.assert_allclose(at(buffer, 1.15), pose_of(1.15), atol=0.01)


@pytest.mark.parametrize("rate_hz", [2, 10, 100])
def test_hard_driving_is_no_jump(rate_hz: int) -> None:
    """Emergency braking from 20 m/s at 9 m/s^2, then standing."""
    buffer = OdometryBuffer(OdometryConfig())
    for i in range(4 * rate_hz):
        time = i / rate_hz
        moving = min(time, 20 / 9)
        length = 20 * moving - 4.5 * moving**2
        reason = buffer.add(
            START_NS + round(time * NS_PER_S), planar_matrix(length, 0, 0), max(20 - 9 * time, 0.0), 0.0
        )
        assert reason == ""


def test_a_pose_that_the_twist_does_not_lead_to_is_a_jump() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, np.arange(0, 1, 0.1))
    shifted = pose_of(1.0) @ planar_matrix(3.0, 0, 0)
    reason = buffer.add(START_NS + NS_PER_S, shifted, SPEED, RATE)
    assert reason == "odometry jumped by 3.00 m and 0.00 rad from where its twist leads in 0.100 s"
    assert len(buffer.samples) == 1, "no pose is interpolated across a jump"
    assert (buffer.counters.pose_jumps, buffer.counters.resets) == (1, 1)
    # The new place is the place: nothing jumps back.
    assert buffer.add(START_NS + 1_100_000_000, shifted @ pose_of(0.1), SPEED, RATE) == ""


def test_a_heading_that_the_twist_does_not_lead_to_is_a_jump() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, [0.0, 0.1])
    reason = buffer.add(START_NS + 200_000_000, pose_of(0.2) @ planar_matrix(0, 0, 0.5), SPEED, RATE)
    assert "0.50 rad" in reason


@pytest.mark.real_data
def test_the_jump_in_a_real_recording_is_found_and_nothing_else(real_data) -> None:
    """Scene 1077 steps back by 3 m between two of its last rows; scene 0553 stands."""
    found = {}
    for scene in ("1077", "0553"):
        recorded = np.load(real_data / "trajectories" / f"scene-{scene}.npz", allow_pickle=False)
        speeds = np.hypot(*recorded["ego_velocity_xy_10hz"].T)
        rows = np.column_stack([recorded["ego_xyz_10hz"][:, :2], recorded["ego_heading_10hz"]])
        buffer = OdometryBuffer(OdometryConfig())
        found[scene] = [
            i
            for i, row in enumerate(rows)
            if buffer.add(START_NS + i * NS_PER_S // 10, planar_matrix(*row), float(np.median(speeds)), 0.0)
        ]
    assert found == {"1077": [199], "0553": []}


def test_a_time_jump_clears_and_says_so() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, np.arange(0, 20, 0.1))
    (reason,) = fill(buffer, [0.0])
    assert reason == "odometry jumped back in time by 19.900 s"
    assert [sample.stamp_ns for sample in buffer.samples] == [START_NS]
    assert buffer.last_reset_reason == reason


def test_samples_out_of_order_are_sorted_in_and_duplicates_dropped() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    assert fill(buffer, [0.0, 0.2, 0.1, 0.2, 0.3]) == []
    assert [(s.stamp_ns - START_NS) // 100_000_000 for s in buffer.samples] == [0, 1, 2, 3]
    assert (buffer.counters.out_of_order, buffer.counters.duplicate) == (1, 1)


def test_the_buffer_is_bounded_by_time() -> None:
    buffer = OdometryBuffer(OdometryConfig(buffer_s=3.0))
    fill(buffer, np.arange(0, 60, 0.01))
    assert len(buffer.samples) == 301


def test_age_and_loss_follow_the_nodes_clock() -> None:
    buffer = OdometryBuffer(OdometryConfig(max_age_s=0.5))
    assert buffer.age_s(START_NS) == float("inf")
    assert buffer.latest_ego_state(START_NS) is None
    fill(buffer, np.arange(0, 3.05, 0.1))
    now_ns = START_NS + 3_400_000_000
    assert buffer.age_s(now_ns) == pytest.approx(0.4)
    ego = buffer.latest_ego_state(now_ns)
    assert ego is not None
    assert (ego.stamp_ns, ego.motion_valid) == (START_NS + 3 * NS_PER_S, True)
    assert buffer.latest_ego_state(now_ns + 200_000_000) is None


def test_covers_says_whether_to_wait() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    assert not buffer.covers(START_NS)
    fill(buffer, [0.0, 0.1])
    assert buffer.covers(START_NS + 100_000_000)
    assert not buffer.covers(START_NS + 100_000_001)


def test_what_is_no_number_is_refused_and_leaves_the_buffer_alone() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, [0.0])
    with pytest.raises(ContractError, match="odometry has speed nan m/s"):
        buffer.add(START_NS + 1, np.eye(4), float("nan"), 0.0)
    with pytest.raises(ContractError, match=r"odom_from_base has 1 of 16 values that are not finite"):
        buffer.add(START_NS + 1, np.where(np.eye(4) > 0, 1.0, 0.0) + np.diag([np.inf, 0, 0, 0]), 0.0, 0.0)
    assert len(buffer.samples) == 1


def test_the_ego_state_is_that_of_the_loaders() -> None:
    buffer = OdometryBuffer(OdometryConfig())
    fill(buffer, np.arange(0, 3.01, 0.1))
    ego = buffer.ego_state(START_NS + 3 * NS_PER_S)
    assert ego.speed_mps == SPEED
    np.testing.assert_allclose(ego.past_poses[0], planar_pose(pose_of(-0.5)), atol=1e-3)
    assert replace(ego, past_poses=0, past_valid=0).acceleration_mps2 == pytest.approx(0)
