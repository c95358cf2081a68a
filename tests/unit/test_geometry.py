"""Rigid transforms: inverses cancel, poses interpolate the short way, tracks refuse what they don't cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sparseoccvla.geometry import (
    PoseError,
    PoseTrack,
    headings_along,
    interpolate,
    inverse,
    matrix_from_pose,
    planar_matrix,
    planar_pose,
    pose_from_matrix,
    transform,
    wrap_angle,
)

NUMBERS = st.floats(-100, 100)
TURNS = st.tuples(*[st.floats(-3, 3)] * 3)


def rigid(translation, turn) -> np.ndarray:
    return matrix_from_pose(translation, Rotation.from_rotvec(turn).as_quat())


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), TURNS)
def test_an_inverse_cancels_and_a_pose_comes_back(translation, turn):
    matrix = rigid(translation, turn)
    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(matrix_from_pose(*pose_from_matrix(matrix)), matrix, atol=1e-9)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), TURNS, st.floats(-1, 2))
def test_interpolation_is_even_in_angle_and_distance(translation, turn, fraction):
    start, end = rigid((1, 2, 3), (0.1, -0.2, 0.3)), None
    end = start @ rigid(translation, turn)
    middle = interpolate(start, end, fraction)
    relative = Rotation.from_matrix(middle[:3, :3] @ start[:3, :3].T).as_rotvec()
    whole = Rotation.from_matrix(end[:3, :3] @ start[:3, :3].T).as_rotvec()
    expected = Rotation.from_rotvec(whole * fraction).as_matrix()
    np.testing.assert_allclose(Rotation.from_rotvec(relative).as_matrix(), expected, atol=1e-9)
    np.testing.assert_allclose(
        middle[:3, 3], start[:3, 3] + fraction * (end[:3, 3] - start[:3, 3]), atol=1e-9
    )


def test_interpolation_across_half_a_turn_takes_the_short_way():
    half = interpolate(planar_matrix(0, 0, 3.0), planar_matrix(0, 0, -3.0), 0.5)
    assert abs(planar_pose(half)[2]) == pytest.approx(np.pi)


def test_points_move_with_their_frame():
    base_from_camera = planar_matrix(1.0, 2.0, np.pi / 2)
    np.testing.assert_allclose(transform(base_from_camera, np.array([[1.0, 0, 0]])), [[1, 3, 0]], atol=1e-12)


def test_a_zero_quaternion_is_refused():
    with pytest.raises(ValueError, match="zero norm"):
        matrix_from_pose((0, 0, 0), (0, 0, 0, 0))


def test_angles_wrap_into_half_open_turn():
    np.testing.assert_allclose(wrap_angle([np.pi, -np.pi, 3 * np.pi / 2]), [-np.pi, -np.pi, -np.pi / 2])


def test_a_track_extrapolates_its_motion_as_far_as_it_may():
    track = PoseTrack((0, 10**9), (planar_matrix(0, 0, 0), planar_matrix(8, 0, 0)))
    pose, beyond_s = track.at(10**9 + 10**8, max_extrapolation_s=0.15)
    assert planar_pose(pose)[0] == pytest.approx(8.8)
    assert beyond_s == pytest.approx(0.1)
    with pytest.raises(
        PoseError, match=r"odometry covers 0 to 1000000000 ns, 0\.200 s short, at most 0\.15 s"
    ):
        track.at(10**9 + 2 * 10**8, max_extrapolation_s=0.15)


def test_an_empty_track_says_what_is_missing():
    with pytest.raises(PoseError, match="is odometry published"):
        PoseTrack((), ()).at(0)


def test_headings_of_a_standing_vehicle_do_not_follow_its_noise():
    path = np.array([[0.01, 0.0], [0.01, 0.02], [5.0, 5.0]])
    np.testing.assert_allclose(headings_along(path)[:2], [0, 0])
    assert headings_along(path)[2] == pytest.approx(np.pi / 4, abs=0.01)
