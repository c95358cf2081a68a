"""Points to voxels, what the cameras could see, and the bird's-eye grid. numpy only.

The rule for turning points into voxels belongs to a model (it was tuned or published with it), so a
backend carries its `VoxelRule`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from sparseoccvla.contracts import (
    FLAT_CLASSES,
    NUM_CLASSES,
    OCC3D_GRID,
    OccupancyPoints,
    SparseOccupancy,
    VoxelGrid,
    check_array,
)

UNKNOWN, FREE, OCCUPIED = -1, 0, 100  # nav_msgs/OccupancyGrid


@dataclass(frozen=True)
class VoxelRule:
    """How points become voxels. The defaults are OPUS's post-processing."""

    threshold: float = 0.5  # a point or voxel whose best class is not above this is dropped
    max_spread_m: float = 3.0  # a point farther than this from the mean of its query's points is dropped
    max_points_per_voxel: int = 10  # the first so many are averaged
    closing: bool = True  # fill one-voxel gaps: 3x3x3 dilation, then erosion
    flat_spread: float = 0.0  # share of a flat voxel's score that its 4 horizontal neighbors get
    standing_threshold: float = 0.0  # of classes that are not flat; 0: the same threshold

    def handicaps(self) -> NDArray[np.float32]:
        """Factors (17,) of the scores that let one threshold serve all classes.

        Where a thing stands is never as sure as where the ground is: by IoU a voxel is worth keeping from
        about half the IoU that its class reaches.
        """
        standing = self.threshold / self.standing_threshold if self.standing_threshold else 1.0
        factors = np.full(NUM_CLASSES, standing, np.float32)
        factors[list(FLAT_CLASSES)] = 1.0
        return factors


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels in x, y, z order of their index."""

    indices: NDArray[np.uint8]  # (M, 3)
    labels: NDArray[np.uint8]  # (M,)
    scores: NDArray[np.float32]  # (M,)


def drop_strays(
    points_m: NDArray[np.floating], scores: NDArray[np.floating], max_spread_m: float
) -> OccupancyPoints:
    """Points (Q, R, 3) with scores (Q, R, K), flat, without those far from their query's mean."""
    away_m = points_m - points_m.mean(axis=1, keepdims=True)
    kept = np.einsum("qrc,qrc->qr", away_m, away_m) < max_spread_m**2
    return OccupancyPoints(points_m[kept], scores[kept])


def voxelize(points: OccupancyPoints, rule: VoxelRule, grid: VoxelGrid = OCC3D_GRID) -> Voxels:
    """Occupied voxels of scored points; source: OPUS `get_occ`, for any number of points.

    Order matters where a voxel holds more than `max_points_per_voxel`: the first are averaged.
    """
    factors = rule.handicaps()
    points = OccupancyPoints(points.points_base_m, points.class_scores * factors)
    flat, scores = _mean_scores(points, rule, grid)  # (V,), (V, K)
    if rule.closing:
        flat, scores = _closed(flat, scores, rule.threshold, grid.shape)
    labels = scores.argmax(axis=1).astype(np.uint8)
    best = scores[np.arange(len(scores)), labels]
    if rule.flat_spread:
        flat, labels, best = _spread_flat(flat, labels, best, rule, grid.shape)
    indices = np.stack(np.unravel_index(flat, grid.shape), axis=1).astype(np.uint8)
    return Voxels(indices, labels, (best / factors[labels]).astype(np.float32))


def _mean_scores(
    points: OccupancyPoints, rule: VoxelRule, grid: VoxelGrid
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    index, inside = grid.indices(points.points_base_m)
    kept = inside & (points.class_scores.max(axis=1, initial=0) > rule.threshold)
    flat = np.ravel_multi_index(tuple(index[kept].T), grid.shape)
    order = np.argsort(flat, kind="stable")
    flat = flat[order]
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    # Place of each point within its voxel, in the order of arrival.
    rank = np.arange(len(flat)) - np.repeat(starts, np.diff(starts, append=len(flat)))
    first = rank < rule.max_points_per_voxel
    flat = flat[first]
    scores = points.class_scores[kept][order[first]].astype(np.float32)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    if not len(starts):
        return flat, np.zeros((0, NUM_CLASSES), np.float32)
    counts = np.diff(starts, append=len(flat))
    means = np.add.reduceat(scores, starts, axis=0) / counts[:, None]
    return flat[starts], means.astype(np.float32)


def _closed(
    flat: NDArray[np.int64], scores: NDArray[np.float32], threshold: float, shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Voxels after a closing of every class; a voxel that was occupied keeps its own scores."""
    if not len(flat):
        return flat, scores
    index = np.stack(np.unravel_index(flat, shape), axis=1)
    # Nothing can appear beyond one voxel outside; two make the borders of the crop harmless.
    low = np.maximum(index.min(axis=0) - 2, 0)
    high = np.minimum(index.max(axis=0) + 3, shape)
    crop = tuple(high - low)
    dense = np.zeros((NUM_CLASSES, *crop), np.float32)
    dense[:, *(index - low).T] = scores.T
    window = (1, 3, 3, 3)
    present = scores.max(axis=0) > 0
    closed = np.zeros_like(dense)
    grown = maximum_filter(dense[present], window, mode="constant", cval=-np.inf)
    closed[present] = minimum_filter(grown, window, mode="constant", cval=np.inf)
    result = np.where(dense.max(axis=0) > threshold, dense, closed)
    occupied = np.argwhere(result.max(axis=0) > threshold)
    return np.ravel_multi_index(tuple((occupied + low).T), shape), result[:, *occupied.T].T


def _spread_flat(
    flat: NDArray[np.int64],
    labels: NDArray[np.uint8],
    scores: NDArray[np.float32],
    rule: VoxelRule,
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32]]:
    """Ground is seen by few points far away: let it cover its neighbors, where nothing better is."""
    best = np.zeros(shape, np.float32)
    label = np.zeros(shape, np.uint8)
    best.ravel()[flat], label.ravel()[flat] = scores, labels
    ground = np.isin(labels, FLAT_CLASSES)
    source = np.stack(np.unravel_index(flat[ground], shape), axis=1)
    given, kind = scores[ground] * rule.flat_spread, labels[ground]
    for step in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)):
        target = source + step
        ok = ((target >= 0) & (target < shape)).all(axis=1)
        place = tuple(target[ok].T)
        better = given[ok] > best[place]
        place = tuple(axis[better] for axis in place)
        best[place], label[place] = given[ok][better], kind[ok][better]
    occupied = np.flatnonzero(best.ravel() > rule.threshold)
    return occupied, label.ravel()[occupied], best.ravel()[occupied]


class ObservedSpace:
    """Which voxels a camera rig can see past a given occupancy.

    One ray for each square of `stride_px` pixels finds the first occupied voxel; a voxel in view is
    observed when it is no farther than what its ray hit. All geometry is tabled once for a rig, so
    a call costs a few milliseconds.
    """

    # A ray stands for its whole square, which grows with distance: a constant tolerance draws
    # stripes on far ground.
    _TOLERANCE_M, _TOLERANCE_SHARE = 0.6, 0.03

    def __init__(
        self,
        image_from_base: NDArray[np.float64],
        image_size_px: tuple[int, int],
        grid: VoxelGrid = OCC3D_GRID,
        stride_px: int = 8,
    ) -> None:
        """Table the rays of a rig.

        Args:
            image_from_base: (N, 4, 4) base_link point -> (u*d, v*d, d, 1) of a standing vehicle.
            image_size_px: (height, width) of those pixels.
            grid: to be observed.
            stride_px: distance of neighboring rays.
        """
        check_array("image_from_base", image_from_base, (None, 4, 4), "f")
        self._grid = grid
        self._cameras = len(image_from_base)
        height, width = image_size_px
        self._rows, self._columns = -(-height // stride_px), -(-width // stride_px)
        self._step_m = grid.voxel_size_m
        base_from_image = np.linalg.inv(image_from_base)
        self._ray_voxels = self._tabled_rays(base_from_image, stride_px)  # (rays, steps)
        self._voxel_ray, self._voxel_distance_m = self._tabled_voxels(
            image_from_base, base_from_image[:, :3, 3], image_size_px, stride_px
        )

    def _tabled_rays(self, base_from_image: NDArray[np.float64], stride_px: int) -> NDArray[np.int32]:
        v, u = np.mgrid[: self._rows, : self._columns]
        pixel = np.stack([u + 0.5, v + 0.5], axis=-1).reshape(-1, 2) * stride_px
        ones = np.ones(len(pixel))
        direction = np.stack([*pixel.T, ones, 0 * ones], axis=-1) @ np.swapaxes(base_from_image, 1, 2)
        direction = direction[..., :3] / np.linalg.norm(direction[..., :3], axis=-1, keepdims=True)
        reach_m = np.linalg.norm(np.asarray(self._grid.shape) * self._grid.voxel_size_m) / 2
        distance = np.arange(1, int(reach_m / self._step_m) + 1) * self._step_m
        origin = base_from_image[:, None, None, :3, 3]
        points = origin + direction[:, :, None] * distance[:, None]  # (N, pixels, steps, 3)
        index, inside = self._grid.indices(points.reshape(-1, len(distance), 3))
        index[~inside] = 0
        flat = np.ravel_multi_index(tuple(np.moveaxis(index, -1, 0)), self._grid.shape)
        # One entry behind the grid stands for "outside": never occupied.
        return np.where(inside, flat, int(np.prod(self._grid.shape))).astype(np.int32)

    def _tabled_voxels(
        self,
        image_from_base: NDArray[np.float64],
        camera_base_m: NDArray[np.float64],
        image_size_px: tuple[int, int],
        stride_px: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        centers = self._grid.centers_m(np.indices(self._grid.shape).reshape(3, -1).T)  # (voxels, 3)
        ray = np.full((self._cameras, len(centers)), -1, np.int32)
        distance = np.full((self._cameras, len(centers)), np.inf, np.float32)
        height, width = image_size_px
        for camera in range(self._cameras):
            projected = centers @ image_from_base[camera, :3, :3].T + image_from_base[camera, :3, 3]
            depth = np.maximum(projected[:, 2], 1e-5)
            u, v = projected[:, 0] / depth, projected[:, 1] / depth
            seen = (projected[:, 2] > 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            row, column = (v[seen] / stride_px).astype(int), (u[seen] / stride_px).astype(int)
            ray[camera, seen] = (camera * self._rows + row) * self._columns + column
            distance[camera, seen] = np.linalg.norm(centers[seen] - camera_base_m[camera], axis=1)
        return ray, distance

    def __call__(self, indices: NDArray[np.integer], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Observed voxels (grid.shape) given occupied `indices` (M, 3) and cameras `valid` (N,)."""
        occupied = np.zeros(int(np.prod(self._grid.shape)) + 1, bool)
        occupied[np.ravel_multi_index(tuple(indices.astype(np.int64).T), self._grid.shape)] = True
        hits = occupied[self._ray_voxels]  # (rays, steps)
        first = hits.argmax(axis=1)
        reach_m = np.where(hits[np.arange(len(hits)), first], (first + 1) * self._step_m, np.inf)
        reach_m = reach_m * (1 + self._TOLERANCE_SHARE) + self._TOLERANCE_M
        # Index -1 of a voxel out of view reads the last entry: nothing is within -infinity.
        reach_m = np.append(reach_m, -np.inf).astype(np.float32)
        observed = np.zeros(self._voxel_ray.shape[1], bool)
        for camera in np.flatnonzero(valid):
            observed |= self._voxel_distance_m[camera] <= reach_m[self._voxel_ray[camera]]
        return observed.reshape(self._grid.shape)


def sparse_occupancy(
    t0_ns: int,
    points: OccupancyPoints,
    rule: VoxelRule,
    observed: ObservedSpace | NDArray[np.bool_],
    valid: NDArray[np.bool_],
    grid: VoxelGrid = OCC3D_GRID,
) -> SparseOccupancy:
    """Voxelize points and mark what was observed.

    Args:
        t0_ns: of the cameras.
        points: of an encoder or forecaster.
        rule: the model's.
        observed: the rig, or a mask (grid.shape) found before, as a forecast keeps the present's.
        valid: (N,) cameras that took part; not read when a mask is given.
        grid: of the result.
    """
    voxels = voxelize(points, rule, grid)
    mask = observed(voxels.indices, valid) if isinstance(observed, ObservedSpace) else observed
    return SparseOccupancy(t0_ns, voxels.indices, voxels.labels, voxels.scores, mask, grid)


def birds_eye(
    occupancy: SparseOccupancy, low_m: float = 0.2, high_m: float = 2.2
) -> tuple[NDArray[np.int8], float, tuple[float, float]]:
    """A grid (y, x) of UNKNOWN, FREE and OCCUPIED, its cell size in meters and its origin x y.

    A column is occupied when something that is not ground lies in it between `low_m` and `high_m`
    above the ground plane, free when at least one voxel of that band was observed. Rows are y, as
    nav_msgs/OccupancyGrid stores them.
    """
    grid = occupancy.grid
    height = grid.min_m[2] + (np.arange(grid.shape[2]) + 0.5) * grid.voxel_size_m
    band = (height > low_m) & (height < high_m)
    cells = np.where(occupancy.observed[:, :, band].any(axis=2), FREE, UNKNOWN).astype(np.int8)
    solid = ~np.isin(occupancy.labels, FLAT_CLASSES) & band[occupancy.indices[:, 2]]
    cells[tuple(occupancy.indices[solid, :2].T)] = OCCUPIED
    return np.ascontiguousarray(cells.T), grid.voxel_size_m, (grid.min_m[0], grid.min_m[1])
