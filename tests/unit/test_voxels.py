from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.contracts import (
    NUM_CLASSES,
    OCC3D_GRID,
    EncoderInput,
    OccupancyPoints,
    SparseOccupancy,
)
from sparseoccvla.voxels import (
    FREE,
    OCCUPIED,
    UNKNOWN,
    ObservedSpace,
    VoxelRule,
    birds_eye,
    drop_strays,
    sparse_occupancy,
    voxelize,
)

PLAIN = VoxelRule(closing=False)
CAR, ROAD, WALL = 4, 11, 15


def scored(points_m: list[tuple[float, float, float]], labels: list[int], score: float = 0.9):
    scores = np.zeros((len(labels), NUM_CLASSES), np.float32)
    scores[np.arange(len(labels)), labels] = score
    return OccupancyPoints(np.array(points_m, np.float32).reshape(-1, 3), scores)


def test_a_point_becomes_the_voxel_that_contains_it() -> None:
    voxels = voxelize(scored([(0.1, -0.1, -0.9), (50, 0, 0)], [CAR, CAR]), PLAIN)
    assert voxels.indices.tolist() == [[100, 99, 0]]
    assert voxels.labels.tolist() == [CAR]


def test_no_points_give_no_voxels() -> None:
    for rule in (PLAIN, VoxelRule(), VoxelRule(flat_spread=0.5)):
        assert voxelize(scored([], []), rule).indices.shape == (0, 3)


def test_a_voxel_averages_its_first_points_only() -> None:
    points = scored([(0.1, 0.1, 0.1)] * 4, [CAR, CAR, WALL, WALL])
    two = voxelize(points, replace(PLAIN, max_points_per_voxel=2))
    assert (two.labels.tolist(), two.scores.tolist()) == ([CAR], [pytest.approx(0.9)])
    three = voxelize(points, replace(PLAIN, max_points_per_voxel=3))
    assert (three.labels.tolist(), three.scores.tolist()) == ([CAR], [pytest.approx(0.6)])


def test_weak_points_are_dropped_before_averaging() -> None:
    points = scored([(0.1, 0.1, 0.1)] * 2, [CAR, WALL])
    points.class_scores[1] *= 0.4
    assert voxelize(points, PLAIN).scores.tolist() == [pytest.approx(0.9)]


def test_closing_fills_a_gap_and_grows_nothing() -> None:
    wall = [(x, 0.2, 0.2) for x in (0.2, 1.0)]
    closed = voxelize(scored(wall, [WALL, WALL]), VoxelRule())
    assert closed.indices.tolist() == [[100, 100, 3], [101, 100, 3], [102, 100, 3]]
    assert voxelize(scored(wall, [WALL, WALL]), PLAIN).indices.tolist() == [[100, 100, 3], [102, 100, 3]]


def test_closing_at_the_border_ignores_what_lies_outside() -> None:
    corner = voxelize(scored([(-39.9, -39.9, -0.9)], [WALL]), VoxelRule())
    assert corner.indices.tolist() == [[0, 0, 0]]


def test_ground_spreads_to_free_neighbors_and_never_over_objects() -> None:
    rule = VoxelRule(threshold=0.3, closing=False, flat_spread=0.5)
    voxels = voxelize(scored([(0.2, 0.2, 0.2), (0.6, 0.2, 0.2)], [ROAD, CAR], 0.8), rule)
    found = {tuple(i): label for i, label in zip(voxels.indices.tolist(), voxels.labels, strict=True)}
    assert found == {
        (100, 100, 3): ROAD,
        (99, 100, 3): ROAD,
        (100, 99, 3): ROAD,
        (100, 101, 3): ROAD,
        (101, 100, 3): CAR,
    }


def test_classes_that_stand_may_have_a_threshold_of_their_own() -> None:
    scores = np.zeros((4, NUM_CLASSES), np.float32)
    scores[0, CAR], scores[1, CAR], scores[2, ROAD] = 0.2, 0.1, 0.2
    scores[3, [CAR, ROAD]] = 0.2, 0.25  # both are half of what they need, the car a little more
    points_m = np.array([[1, 1, 1], [5, 1, 1], [9, 1, 1], [13, 1, 1]], np.float32)
    rule = VoxelRule(threshold=0.3, closing=False, standing_threshold=0.15)
    found = voxelize(OccupancyPoints(points_m, scores), rule)
    assert found.labels.tolist() == [CAR, CAR]
    assert found.scores == pytest.approx([0.2, 0.2])
    assert not len(voxelize(OccupancyPoints(points_m, scores), replace(rule, standing_threshold=0.0)).labels)


def test_strays_of_a_query_are_dropped() -> None:
    points = np.zeros((1, 10, 3), np.float32)
    points[0, 0, 0] = 5.0
    kept = drop_strays(points, np.ones((1, 10, NUM_CLASSES), np.float32), 3.0)
    assert len(kept.points_base_m) == 9


@pytest.fixture(scope="module")
def space() -> ObservedSpace:
    return ObservedSpace(EncoderInput.fake().image_from_odom, (128, 352))


def voxel_at(x: float, y: float, z: float) -> tuple[int, ...]:
    return tuple(OCC3D_GRID.indices(np.array([x, y, z]))[0])


def wall_ahead() -> np.ndarray:
    y, z = np.meshgrid(np.arange(90, 110), np.arange(16))
    return np.stack([np.full(y.size, 125), y.ravel(), z.ravel()], axis=1).astype(np.uint8)


def test_what_lies_behind_a_wall_is_not_observed(space: ObservedSpace) -> None:
    everything = np.ones(6, bool)
    open_road = space(np.zeros((0, 3), np.uint8), everything)
    walled = space(wall_ahead(), everything)
    assert open_road[voxel_at(20, 0, 1)]
    assert not walled[voxel_at(20, 0, 1)]
    assert walled[voxel_at(8, 0, 1)]
    assert walled[voxel_at(10.1, 0, 1)], "the wall itself is observed"
    assert walled[voxel_at(-20, 0, 1)], "a wall ahead hides nothing behind"


def test_a_masked_camera_observes_nothing(space: ObservedSpace) -> None:
    valid = np.ones(6, bool)
    valid[0] = False  # cam_front
    assert not space(np.zeros((0, 3), np.uint8), valid)[voxel_at(20, 0, 1)]


def test_the_underside_of_the_vehicle_is_never_observed(space: ObservedSpace) -> None:
    assert not space(np.zeros((0, 3), np.uint8), np.ones(6, bool))[voxel_at(0, 0, -0.5)]


def test_birds_eye_rows_are_y_and_unknown_stays_unknown(space: ObservedSpace) -> None:
    points = scored([(10.1, 4.1, 1.0), (10.1, -4.1, 0.5)], [WALL, ROAD])
    occupancy = sparse_occupancy(5, points, PLAIN, space, np.ones(6, bool)).validate()
    cells, size_m, origin = birds_eye(occupancy)
    assert (cells.shape, size_m, origin) == ((200, 200), 0.4, (-40.0, -40.0))
    assert cells[110, 125] == OCCUPIED
    assert cells[89, 125] == FREE, "ground is no obstacle"
    assert cells[100, 100] == UNKNOWN
    assert (cells == OCCUPIED).sum() == 1


def test_a_forecast_keeps_the_mask_it_is_given() -> None:
    mask = np.zeros(OCC3D_GRID.shape, bool)
    occupancy = sparse_occupancy(1, scored([(1, 1, 1)], [CAR]), PLAIN, mask, np.ones(6, bool))
    assert isinstance(occupancy, SparseOccupancy)
    assert not occupancy.observed.any()
