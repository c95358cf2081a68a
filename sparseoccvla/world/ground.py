"""The ground: its height everywhere and what it is made of.

The material is kept as six smooth fields on a 1 m raster: signed distances and road coordinates vary
linearly almost everywhere, so bilinear samples of a coarse raster still give edges that are sharp to a
centimeter. Pictures, labels and the placing of things all read the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from sparseoccvla.world.network import CORNER_RADIUS_M, Network, Road
from sparseoccvla.world.seeds import stream

Array = NDArray[np.float64]

CELL_M = 1.0
MESH_CELL_M = 4.0
MARGIN_M = 84.0  # raster around the roads
FAR_CELL_M = 56.0
FAR_M = 1000.0

DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN = 11, 12, 13, 14


class Channel(IntEnum):
    """What a field holds. Signed distances in meters are positive inside."""

    ROAD = 0
    OUTER = 1  # road, verge and sidewalk together
    VERGE = 2  # road and verge
    FLAT = 3
    STATION = 4  # along the governing road
    OFFSET = 5  # left of its centerline


@dataclass(frozen=True)
class Relief:
    """Heights as a sum of waves: (K,) wave vectors per meter, phases and amplitudes."""

    waves_per_m: Array  # (K, 2)
    phases_rad: Array
    amplitudes_m: Array
    bank_phase_rad: float
    bank_m: float  # how far terrain rises beside the road
    hills_m: float  # and at the horizon

    def base_m(self, points_m: NDArray[np.floating]) -> Array:
        """Height (...) of the wavy plane that carries the roads at points (..., 2)."""
        angles = points_m @ self.waves_per_m.T + self.phases_rad
        return (np.sin(angles) * self.amplitudes_m).sum(axis=-1)


def make_relief(seed: int, hilly: float) -> Relief:
    """`hilly` is the root mean square slope."""
    rng = stream(seed, "relief")
    count = 4
    lengths = rng.uniform(70, 260, count)
    directions = rng.uniform(0, 2 * np.pi, count)
    waves = 2 * np.pi / lengths[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    share = rng.uniform(0.4, 1.0, count)
    slope = hilly * rng.uniform(0.5, 1.3)
    amplitudes = (
        share / np.linalg.norm(share) * slope * lengths / (2 * np.pi) * np.sqrt(2) / np.sqrt(count) * 1.4
    )
    return Relief(
        waves,
        rng.uniform(0, 2 * np.pi, count),
        amplitudes,
        float(rng.uniform(0, 2 * np.pi)),
        float(rng.uniform(0.5, 4.0)),
        float(rng.uniform(10, 45)),
    )


@dataclass(frozen=True)
class Patch:
    """A paved rectangle beside a road, in its coordinates: other_flat, such as a forecourt."""

    road: Road
    center_m: tuple[float, float]  # station, offset
    half_m: tuple[float, float]


@dataclass(frozen=True)
class Ground:
    """Height and material of every point. Points are (..., 2) in the world frame."""

    network: Network
    relief: Relief
    origin_m: tuple[float, float]  # of the raster's first sample
    fields: NDArray[np.float32]  # (6, ny, nx), see `Channel`
    road_ids: NDArray[np.uint8]  # (ny, nx) the governing road's number

    @classmethod
    def make(cls, network: Network, relief: Relief, patches: tuple[Patch, ...] = ()) -> Ground:
        ends = np.concatenate(
            [road.line.point_m(np.linspace(road.start_m, road.end_m, 60)) for road in network.roads]
        )
        low = np.floor((ends.min(axis=0) - MARGIN_M) / MESH_CELL_M) * MESH_CELL_M
        count = np.ceil((ends.max(axis=0) + MARGIN_M - low) / MESH_CELL_M).astype(int)
        nx, ny = count * int(MESH_CELL_M / CELL_M) + 1
        x = low[0] + CELL_M * np.arange(nx)
        y = low[1] + CELL_M * np.arange(ny)
        points = np.stack(np.meshgrid(x, y), axis=-1)
        fields, road_ids = _rasterize(network, patches, points)
        return cls(network, relief, (float(low[0]), float(low[1])), fields, road_ids)

    def sample(self, points_m: NDArray[np.floating]) -> NDArray[np.float32]:
        """Fields (6, N) at points (N, 2)."""
        points = torch.from_numpy(np.asarray(points_m, np.float32))
        return sample_fields(torch.from_numpy(self.fields), self.origin_m, points).numpy()

    def class_at(self, points_m: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Occ3D class (...) of the ground at points (..., 2)."""
        flat = np.asarray(points_m, np.float32).reshape(-1, 2)
        fields = sample_fields(torch.from_numpy(self.fields), self.origin_m, torch.from_numpy(flat))
        return classify(fields).numpy().reshape(np.shape(points_m)[:-1])

    def height_m(self, points_m: NDArray[np.floating]) -> Array:
        """Height (...) at points (..., 2)."""
        points = np.asarray(points_m, float)
        flat = points.reshape(-1, 2)
        outside = -self.sample(flat)[Channel.OUTER].astype(float) - 2.0
        rise = np.clip(outside / 28.0, 0, 1)
        rise = rise * rise * (3 - 2 * rise)
        wave = np.sin(flat @ np.array([0.051, 0.037]) + self.relief.bank_phase_rad)
        bank = self.relief.bank_m * rise * (0.55 + 0.45 * wave)
        # Hills rise beyond the raster.
        high = np.array(self.origin_m) + CELL_M * (np.array(self.fields.shape[:0:-1]) - 1)
        beyond = np.maximum(np.maximum(self.origin_m - flat, flat - high), 0)
        far = np.clip(np.hypot(beyond[:, 0], beyond[:, 1]) / 500.0, 0, 1) ** 1.5
        ridge = 0.6 + 0.4 * np.sin(flat @ np.array([0.0071, -0.0083]) + 2 * self.relief.bank_phase_rad)
        height = self.relief.base_m(flat) + bank + far * self.relief.hills_m * ridge
        return height.reshape(points.shape[:-1])

    def lift(self, poses: NDArray[np.floating], length_m: float, width_m: float) -> Array:
        """(..., 6) x, y, z, yaw, pitch, roll of planar poses (..., 3) whose wheels touch the ground.

        Pitch is positive nose down and roll positive to the right (right-handed about y and x). The wheels
        stand `length_m` apart ahead of the pose's point and `width_m` apart across it.
        """
        poses = np.asarray(poses, float)
        c, s = np.cos(poses[..., 2]), np.sin(poses[..., 2])
        forward = np.stack([c, s], axis=-1) * length_m
        left = np.stack([-s, c], axis=-1) * (width_m / 2)
        here = poses[..., :2]
        corners = np.stack([here + left, here - left, here + forward + left, here + forward - left], axis=-2)
        rear_left, rear_right, front_left, front_right = np.moveaxis(self.height_m(corners), -1, 0)
        rear, front = (rear_left + rear_right) / 2, (front_left + front_right) / 2
        pitch = -np.arctan2(front - rear, length_m)
        roll = np.arctan2((rear_left + front_left - rear_right - front_right) / 2, width_m)
        return np.stack([here[..., 0], here[..., 1], rear, poses[..., 2], pitch, roll], axis=-1)

    def rest(self, poses: NDArray[np.floating], size_m: tuple[float, float, float]) -> Array:
        """(..., 6) poses of things whose centers stand at planar poses (..., 3).

        Long things tilt with the ground; short ones, such as people, stand upright.
        """
        poses = np.asarray(poses, float)
        length, width, _ = size_m
        if length < 1.2:
            upright = np.zeros((*poses.shape[:-1], 6))
            upright[..., :2], upright[..., 3] = poses[..., :2], poses[..., 2]
            upright[..., 2] = self.height_m(poses[..., :2])
            return upright
        half = 0.3 * length
        rear = poses.copy()
        rear[..., 0] -= half * np.cos(poses[..., 2])
        rear[..., 1] -= half * np.sin(poses[..., 2])
        lifted = self.lift(rear, 2 * half, width)
        lifted[..., :2] = poses[..., :2]
        lifted[..., 2] -= half * np.tan(lifted[..., 4])
        return lifted

    @cached_property
    def corners_m(self) -> NDArray[np.float32]:
        """Heights (ny, nx) of the fine mesh's vertices, `MESH_CELL_M` apart from `origin_m` on."""
        step = int(MESH_CELL_M / CELL_M)
        ny, nx = self.fields.shape[1:]
        x = self.origin_m[0] + CELL_M * np.arange(0, nx, step)
        y = self.origin_m[1] + CELL_M * np.arange(0, ny, step)
        return self.height_m(np.stack(np.meshgrid(x, y), axis=-1)).astype(np.float32)

    @cached_property
    def mesh(self) -> NDArray[np.float32]:
        """Triangles (P, 3, 3) that face up: fine near the roads, coarse to the horizon."""
        ny, nx = (np.array(self.fields.shape[1:]) - 1) * CELL_M
        near = _grid_triangles(self, self.origin_m, (nx, ny), MESH_CELL_M)
        low = np.array(self.origin_m) - np.ceil(FAR_M / FAR_CELL_M) * FAR_CELL_M
        far = _grid_triangles(self, tuple(low), tuple(np.array([nx, ny]) + 2 * FAR_M), FAR_CELL_M)
        center = far.mean(axis=1)[:, :2] - np.array(self.origin_m)
        # Coarse triangles reach a little under the fine ones, so that no sky shows between them.
        covered = ((center > FAR_CELL_M * 0.7) & (center < np.array([nx, ny]) - FAR_CELL_M * 0.7)).all(axis=1)
        far[..., 2] -= 0.6
        return np.concatenate([near, far[~covered]]).astype(np.float32)


def _grid_triangles(
    ground: Ground, low_m: tuple[float, ...], extent_m: tuple[float, ...], cell_m: float
) -> Array:
    x = low_m[0] + cell_m * np.arange(int(np.ceil(extent_m[0] / cell_m)) + 1)
    y = low_m[1] + cell_m * np.arange(int(np.ceil(extent_m[1] / cell_m)) + 1)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    vertices = np.concatenate([points, ground.height_m(points)[..., None]], axis=-1)
    a, b = vertices[:-1, :-1], vertices[:-1, 1:]
    c, d = vertices[1:, 1:], vertices[1:, :-1]
    triangles = np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)], axis=2)
    return triangles.reshape(-1, 3, 3)


def sample_fields(fields: Tensor, origin_m: tuple[float, float], points_m: Tensor) -> Tensor:
    """Bilinear samples (C, N) of fields (C, ny, nx) at points (N, 2); outside, the border goes on."""
    size = torch.tensor(fields.shape[:0:-1], device=fields.device, dtype=torch.float32) - 1
    origin = torch.tensor(origin_m, device=fields.device, dtype=torch.float32)
    unit = (points_m - origin) * (2 / (size * CELL_M)) - 1
    result = grid_sample(
        fields[None], unit[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return result[0, :, 0]


def mesh_height(corners_m: Tensor, origin_m: tuple[float, float], x_m: Tensor, y_m: Tensor) -> Tensor:
    """Height (N,) of the fine mesh with vertices `Ground.corners_m` at points x, y (N,)."""
    rows, columns = corners_m.shape
    x, y = (x_m - origin_m[0]) / MESH_CELL_M, (y_m - origin_m[1]) / MESH_CELL_M
    column, row = x.floor().clamp(0, columns - 2), y.floor().clamp(0, rows - 2)
    x, y = x - column, y - row
    a = (row * columns + column).to(torch.int64)
    flat = corners_m.reshape(-1)
    # Two triangles in each cell meet along its diagonal; the third corner is right below or left above it.
    right = x > y
    third = flat.index_select(0, torch.where(right, a + 1, a + columns))
    near, far = flat.index_select(0, a), flat.index_select(0, a + columns + 1)
    larger, smaller = torch.maximum(x, y), torch.minimum(x, y)
    return near + larger * (third - near) + smaller * (far - third)


def classify(fields: Tensor) -> Tensor:
    """Occ3D class (N,) uint8 of fields (6, N)."""
    walk = (fields[Channel.OUTER] > 0) & (fields[Channel.VERGE] < 0)
    result = torch.where(walk, SIDEWALK, TERRAIN)
    result = torch.where(fields[Channel.ROAD] > 0, DRIVEABLE, result)
    return torch.where(fields[Channel.FLAT] > 0, OTHER_FLAT, result).to(torch.uint8)


def _smooth_union(a: Array, b: Array, radius_m: float) -> Array:
    """Signed distance of a union whose inner corners are rounded with about this radius."""
    k = 1.17 * radius_m
    return np.maximum(a, b) + np.maximum(k - np.abs(a - b), 0) ** 2 / (4 * k)


def _rasterize(
    network: Network, patches: tuple[Patch, ...], points_m: Array
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    coordinates = [road.line.frenet(points_m) for road in network.roads]
    inside, outer, verge, flat = [], [], [], []
    for road, (s, d) in zip(network.roads, coordinates, strict=True):
        profile = road.profile
        ends = np.minimum(s - road.start_m, road.end_m - s)
        away = road.mouth_distance_m(s)
        sd = np.minimum(np.minimum(profile.left_m - d, d - profile.right_m), ends)
        inside.append(sd)
        outer.append(sd + profile.verge_m + profile.walk_m)
        # No verge at the crosswalks.
        verge.append(np.maximum(np.minimum(sd + profile.verge_m, away - 5.0), sd))
        if profile.median_m > 0:
            flat.append(np.minimum(np.minimum(profile.median_m / 2 - np.abs(d), away - 1.0), ends))
    for patch in patches:
        s, d = coordinates[network.roads.index(patch.road)]
        s0, d0 = patch.center_m
        flat.append(np.minimum(patch.half_m[0] - np.abs(s - s0), patch.half_m[1] - np.abs(d - d0)))
    governing = np.argmax(inside, axis=0)
    stack = np.stack(
        [
            _union(inside, CORNER_RADIUS_M),
            _union(outer, 2.5),
            _union(verge, CORNER_RADIUS_M),
            np.max(flat, axis=0) if flat else np.full(points_m.shape[:-1], -100.0),
            np.choose(governing, [s for s, _ in coordinates]),
            np.choose(governing, [d for _, d in coordinates]),
        ]
    )
    return stack.astype(np.float32), governing.astype(np.uint8)


def _union(distances: list[Array], radius_m: float) -> Array:
    return distances[0] if len(distances) == 1 else _smooth_union(distances[0], distances[1], radius_m)
