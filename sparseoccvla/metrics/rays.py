"""RayIoU: what a simulated lidar would hit first, in class and depth. Source: SparseOcc `ray_metrics.py`.

14,040 rays (360 azimuths, 39 pitches) leave each origin. A ray's depth is the distance at which it
leaves the first voxel that is not free; without one it is the distance at which it leaves the grid, and
its class is free. Rays that are free in the ground truth are dropped, no mask is used, and a class
that neither ground truth nor prediction shows is left out of the mean.

The public code walks voxel by voxel in CUDA. Here all rays jump at once over empty squares of their
layer and cross the voxels beside occupied ones singly: the same first hits in about ten array steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_cdt

from sparseoccvla.contracts import FREE_CLASS, NUM_CLASSES, OCC3D_GRID, VoxelGrid
from sparseoccvla.metrics.additive import STATE, Additive, UnscorableError, zeros
from sparseoccvla.metrics.occupancy import check_labels, mean_of, number

THRESHOLDS_M = (1.0, 2.0, 4.0)
MAX_ORIGINS = 8
ORIGIN_RANGE_M = 39.0


@lru_cache(maxsize=1)
def ray_directions() -> NDArray[np.float32]:
    """(14040, 3) unit vectors: 10 pitches down to 45 degrees, then equal steps up to the lidar's limit."""
    pitches = [math.atan(k) - math.pi / 2 for k in range(1, 11)]
    while pitches[-1] < 0.21:
        pitches.append(2 * pitches[-1] - pitches[-2])
    pitch = np.repeat(pitches, 360)
    azimuth = np.tile(np.deg2rad(np.arange(360)), len(pitches))
    rays = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    return np.stack(rays, axis=-1).astype(np.float32)


def select_origins(origins_m: NDArray[np.floating]) -> NDArray[np.float64]:
    """The at most 8 origins the convention uses, evenly chosen from those within 39 m in x and y.

    Args:
        origins_m: (N, 3) lidar positions of a scene's keyframes in base_link of the current one.
    """
    near = origins_m[(np.abs(origins_m[:, :2]) < ORIGIN_RANGE_M).all(axis=1)]
    if len(near) > MAX_ORIGINS:
        near = near[np.round(np.linspace(0, len(near) - 1, MAX_ORIGINS)).astype(int)]
    return np.asarray(near, float)


@dataclass(frozen=True)
class Rays:
    """Rays in voxel units: where each starts, where it points, the voxel it starts in."""

    start: NDArray[np.float64]  # (N, 3)
    direction: NDArray[np.float64]  # (N, 3) unit vectors
    voxel: NDArray[np.int32]  # (N, 3)
    voxel_size_m: float

    @classmethod
    def from_origins(cls, origins_m: ArrayLike, grid: VoxelGrid = OCC3D_GRID) -> Rays:
        """All rays of every origin (K, 3) in the grid's frame, in meters.

        Raises:
            UnscorableError: no origin, not 3 numbers each, not finite, or outside the grid.
        """
        origins = np.asarray(origins_m, np.float32)
        if origins.ndim != 2 or origins.shape[1] != 3 or len(origins) == 0:
            raise UnscorableError(f"ray origins have shape {origins.shape}, wanted (at least 1, 3) in meters")
        inside = ((origins > grid.min_m) & (origins < grid.max_m)).all(axis=1)
        if not inside.all():
            raise UnscorableError(
                f"ray origin {origins[~inside][0].tolist()} m lies outside the grid "
                f"{list(grid.min_m)}..{[round(m, 3) for m in grid.max_m]} m"
            )
        # Single precision up to here, as in the public code: it decides which of two voxels a ray
        # that runs along their common face is in.
        low, size = np.asarray(grid.min_m, np.float32), np.float32(grid.voxel_size_m)
        ends = ray_directions()[None] + origins[:, None]
        start = ((origins - low) / size)[:, None].astype(float)
        toward = ((ends - low) / size).astype(float) - start
        direction = toward / np.linalg.norm(toward, axis=-1, keepdims=True)
        start = np.broadcast_to(start, direction.shape).reshape(-1, 3)
        return cls(start, direction.reshape(-1, 3), start.astype(np.int32), grid.voxel_size_m)

    def only(self, chosen: NDArray[np.bool_]) -> Rays:
        """The rays of a mask (N,)."""
        return Rays(self.start[chosen], self.direction[chosen], self.voxel[chosen], self.voxel_size_m)


@dataclass(frozen=True)
class Hits:
    """What each ray sees first."""

    labels: NDArray[np.uint8]  # (N,) FREE_CLASS: nothing
    depths_m: NDArray[np.float32]  # (N,)


def cast(rays: Rays, labels: NDArray[np.integer]) -> Hits:
    """First voxels along rays that are not free, in a grid of labels (X, Y, Z)."""
    shape = np.asarray(labels.shape)
    clearance, flat_labels = _layer_clearance(labels != FREE_CLASS).ravel(), labels.ravel()
    found = np.full(len(rays.start), FREE_CLASS, np.uint8)
    depth = np.zeros(len(rays.start))
    active = np.arange(len(rays.start))
    start, direction, voxel = list(rays.start.T), list(rays.direction.T), list(rays.voxel.T)
    while len(active):
        flat = (voxel[0] * shape[1] + voxel[1]) * shape[2] + voxel[2]
        radius = clearance[flat]
        hit = radius == 0
        # How many voxels the empty box reaches from the ray's voxel in x, y, z; one is the voxel itself.
        reach = (np.maximum(radius, 1), np.maximum(radius, 1), 1)
        forward = [d >= 0 for d in direction]
        crossing = [
            np.divide(np.where(ahead, v + r, v + 1 - r) - s, d, out=np.full(len(d), np.inf), where=d != 0)
            for ahead, v, r, s, d in zip(forward, voxel, reach, start, direction, strict=True)
        ]
        leaves, exit_at = _first_crossing(*crossing)
        # Along the axis it leaves by a ray moves to just outside the box, along the others inside it.
        moved = [
            np.where(
                leaves == axis,
                np.where(forward[axis], v + r, v - r),
                np.clip(np.floor(s + exit_at * d).astype(np.int32), v + 1 - r, v + r - 1),
            )
            for axis, (v, r, s, d) in enumerate(zip(voxel, reach, start, direction, strict=True))
        ]
        done = hit.copy()
        for position, size in zip(moved, shape, strict=True):
            done |= (position < 0) | (position >= size)
        depth[active[done]] = exit_at[done]
        found[active[hit]] = flat_labels[flat[hit]]
        going = np.flatnonzero(~done)
        active = active[going]
        start, direction = [s[going] for s in start], [d[going] for d in direction]
        voxel = [m[going] for m in moved]
    return Hits(found, depth.astype(np.float32) * np.float32(rays.voxel_size_m))


def _layer_clearance(occupied: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Chessboard distance of each voxel to the nearest occupied one, or the border, of its own layer.

    A square of that radius less one is empty. One layer rather than a cube: rays are long where they
    are nearly level, and over flat ground a cube would never be wider than the ray is high.
    """
    layer = np.zeros((3, 3, 3), bool)
    layer[:, :, 1] = True
    padded = np.pad(occupied, ((1, 1), (1, 1), (0, 0)), constant_values=True)
    return distance_transform_cdt(~padded, metric=layer)[1:-1, 1:-1]


def _first_crossing(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Axis and distance of the nearest of three crossings; a tie goes to z, then y, as in the public code."""
    by_x = (x < y) & (x < z)
    by_y = (y < z) & ~(x < y)
    return np.where(by_x, 0, np.where(by_y, 1, 2)), np.where(by_x, x, np.where(by_y, y, z))


@dataclass
class RayMetric(Additive):
    """Counts of rays by class: hit right, in the ground truth, in the prediction."""

    right: NDArray[np.int64] = field(
        default_factory=zeros((len(THRESHOLDS_M), NUM_CLASSES), np.int64), metadata=STATE
    )
    in_truth: NDArray[np.int64] = field(default_factory=zeros(NUM_CLASSES, np.int64), metadata=STATE)
    in_prediction: NDArray[np.int64] = field(default_factory=zeros(NUM_CLASSES, np.int64), metadata=STATE)
    rays: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)

    def update(
        self, predicted: NDArray[np.integer], truth: NDArray[np.integer], origins_m: ArrayLike
    ) -> None:
        """Add one pair of grids of OCC3D_GRID, seen from origins (K, 3) in base_link, in meters.

        As in the public code no mask is used, and a ground-truth voxel of label 255 stops a ray: the
        ray counts, and no class can be right there.

        Raises:
            UnscorableError: grids of another shape, labels out of range, or an unusable origin.
        """
        check_labels(predicted, truth)
        if truth.shape != OCC3D_GRID.shape:
            raise UnscorableError(f"the grids have shape {truth.shape}, rays want {OCC3D_GRID.shape}")
        rays = Rays.from_origins(origins_m)
        seen = cast(rays, truth)
        counted = seen.labels != FREE_CLASS
        guess = cast(rays.only(counted), predicted)
        label, error = seen.labels[counted], np.abs(guess.depths_m - seen.depths_m[counted])
        same = guess.labels == label
        self.right = self.right + np.stack([_per_class(label[same & (error < far)]) for far in THRESHOLDS_M])
        self.in_truth = self.in_truth + _per_class(label)
        self.in_prediction = self.in_prediction + _per_class(guess.labels)
        self.rays = self.rays + int(counted.sum())
        self.samples = self.samples + 1

    def result(self) -> dict[str, Any]:
        """RayIoU, its three thresholds, and the IoU per class at each; fractions, None: class absent."""
        union = self.in_truth + self.in_prediction - self.right
        iou = np.divide(self.right, union, out=np.full(self.right.shape, np.nan), where=union > 0)
        figures: dict[str, Any] = {"RayIoU": mean_of(iou.ravel())}
        for threshold, row in zip(THRESHOLDS_M, iou, strict=True):
            figures[f"RayIoU@{threshold:g}"] = mean_of(row)
        figures["per_class_rayiou@1/2/4"] = [[number(value) for value in row] for row in iou]
        figures["rays"] = int(self.rays)
        return figures


def _per_class(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(labels, minlength=256)[:NUM_CLASSES]
