import numpy as np
import pytest

from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.rays import RayMetric, Rays, cast, ray_directions, select_origins

CAR, WALL, FREE = 4, 15, 17
SHAPE = (200, 200, 16)
ORIGIN = [[0.9858, 0.0, 1.84]]


def grid_with(*boxes: tuple[slice, slice, slice, int]) -> np.ndarray:
    grid = np.full(SHAPE, FREE, np.uint8)
    for x, y, z, label in boxes:
        grid[x, y, z] = label
    return grid


def walked(start: np.ndarray, direction: np.ndarray, grid: np.ndarray) -> tuple[int, float]:
    """The definition, one voxel after the other: class and exit distance of the first occupied voxel."""
    voxel = start.astype(int)
    step = np.where(direction >= 0, 1, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_border = np.where(direction != 0, (voxel + (step > 0) - start) / direction, np.inf)
        per_voxel = np.where(direction != 0, step / direction, np.inf)
    while True:
        x, y, z = to_border
        axis = 0 if x < y and x < z else 1 if y < z and not x < y else 2
        label, leaves = grid[tuple(voxel)], to_border[axis]
        voxel[axis] += step[axis]
        to_border[axis] += per_voxel[axis]
        gone = not (0 <= voxel[axis] < grid.shape[axis])
        if label != FREE or gone:
            return int(label), float(leaves)


@pytest.mark.parametrize("origin", [[0.9858, 0.0, 1.84], [0.0, 0.0, 1.8], [-12.3, 7.7, 0.2]])
def test_jumping_rays_meet_what_walking_rays_meet(origin: list[float]) -> None:
    rng = np.random.default_rng(0)
    grid = np.where(rng.random(SHAPE) < 0.004, CAR, FREE).astype(np.uint8)
    grid[:, :, 0] = 11
    rays = Rays.from_origins([origin])
    some = np.zeros(len(rays.start), bool)
    some[rng.choice(len(some), 600, replace=False)] = True
    some[:: 360 * 5] = True  # along the axes, where rays run on faces of voxels
    chosen = rays.only(some)
    hits = cast(chosen, grid)
    expected = [walked(s, d, grid) for s, d in zip(chosen.start, chosen.direction, strict=True)]
    assert hits.labels.tolist() == [label for label, _ in expected]
    np.testing.assert_allclose(hits.depths_m, [0.4 * far for _, far in expected], rtol=1e-6)


def test_there_are_14040_rays_of_39_pitches() -> None:
    rays = ray_directions()
    assert rays.shape == (14040, 3)
    assert len(np.unique(rays[:, 2].round(6))) == 39
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, rtol=1e-6)


def test_a_rays_depth_is_where_it_leaves_the_first_voxel() -> None:
    grid = grid_with((slice(150, 151), slice(None), slice(None), WALL))
    metric = RayMetric()
    metric.update(grid, grid, ORIGIN)
    rays = Rays.from_origins(ORIGIN)
    straight = rays.only(np.arange(14040) % 360 == 0)
    hits = cast(straight, grid)
    # The wall's far side is 20.4 m ahead of base_link, 19.4142 m of the origin.
    ahead = hits.depths_m[hits.labels == WALL] * straight.direction[hits.labels == WALL, 0]
    assert ahead.max() == pytest.approx(20.4 - 0.9858, abs=1e-4)
    assert ahead.min() > 20.0 - 0.9858  # some leave it through another side
    assert metric.result()["RayIoU"] == 1.0


def test_depth_errors_fail_the_thresholds_they_exceed() -> None:
    near = grid_with((slice(150, 151), slice(90, 110), slice(0, 16), WALL))
    far = grid_with((slice(154, 155), slice(90, 110), slice(0, 16), WALL))  # 1.6 m behind
    metric = RayMetric()
    metric.update(far, near, ORIGIN)
    result = metric.result()
    assert result["RayIoU@1"] == 0.0
    assert result["RayIoU@2"] > 0.7
    assert result["RayIoU@4"] > 0.7


def test_a_wrong_class_at_the_right_depth_is_wrong() -> None:
    metric = RayMetric()
    wall, car = (grid_with((slice(150, 151), slice(None), slice(None), label)) for label in (WALL, CAR))
    metric.update(car, wall, ORIGIN)
    assert metric.result()["RayIoU"] == 0.0


def test_rays_that_are_free_in_the_ground_truth_are_dropped() -> None:
    truth = grid_with((slice(150, 151), slice(99, 101), slice(4, 8), WALL))
    predicted = truth.copy()
    predicted[10:20] = CAR  # behind the origin, where the ground truth has nothing
    metric = RayMetric()
    metric.update(predicted, truth, ORIGIN)
    assert metric.result()["RayIoU"] == 1.0
    metric.update(truth, predicted, ORIGIN)  # the control: now the car is what the ground truth has
    assert metric.result()["RayIoU"] < 1.0


def test_an_ignored_voxel_stops_a_ray_and_nobody_is_right_there() -> None:
    truth = grid_with((slice(150, 151), slice(None), slice(None), 255))
    metric = RayMetric()
    metric.update(grid_with((slice(150, 151), slice(None), slice(None), WALL)), truth, ORIGIN)
    assert metric.result()["rays"] > 0
    assert metric.result()["RayIoU"] == 0.0


def test_origins_are_the_at_most_eight_evenly_chosen_within_39_m() -> None:
    origins = np.stack([np.linspace(-60, 60, 41), np.zeros(41), np.full(41, 1.8)], axis=1)
    chosen = select_origins(origins)
    assert len(chosen) == 8
    assert (chosen[0, 0], chosen[-1, 0]) == (-36, 36)
    assert len(select_origins(origins[20:23])) == 3


@pytest.mark.parametrize(
    ("origins", "message"),
    [([], "wanted"), ([[1, 2]], "wanted"), ([[50, 0, 1]], "outside the grid"), ([[np.nan, 0, 1]], "outside")],
)
def test_unusable_origins_are_refused(origins, message: str) -> None:
    grid = grid_with()
    with pytest.raises(UnscorableError, match=message):
        RayMetric().update(grid, grid, origins)
    with pytest.raises(UnscorableError, match="rays want"):
        RayMetric().update(grid[:10], grid[:10], ORIGIN)
