"""Occupancy of the world on the Occ3D grid, and which of it cameras and lidar see.

A voxel is occupied where a surface passes through it: things are hollow and stand on one layer of ground,
as in labels made from lidar points. Surfaces are kept as samples at most `SPACING_M` apart, and a voxel is
occupied when a sample lies in it. Where several surfaces share a voxel, things that move win over scenery,
and both over ground.

An occupied voxel is seen when one of its samples is, a free one when its center is. Samples are asked
instead of centers because far ground is seen at a grazing angle: the ray through a voxel's center may meet
the ground meters before or behind the voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID
from sparseoccvla.geometry import inverse
from sparseoccvla.world.boxes import corners_m
from sparseoccvla.world.cameras import CameraRig, RigCamera
from sparseoccvla.world.caster import Lens
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.ground import CELL_M, Ground, classify, mesh_height, sample_fields
from sparseoccvla.world.lidar import Lidar, Panorama
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.render import CameraImage, lens_of
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.stage import Stage
from sparseoccvla.world.things import Thing

SPACING_M = 0.2
REACH_M = 57.0  # from the middle of the grid to its corners
TOP_M = 14.0  # samples higher above the ground than this can't be in the grid, however steep the road
# How far behind the first surface a point still counts as on it: rounding, and facets of round things.
NEAR_M, NEAR_SHARE = 0.05, 0.004
CLOSEST_M = 1.0
# How far the view of a camera may move between its stamp and the keyframe's.
_MOTION_M = 2.0
# Which class a voxel takes that several surfaces share: the last of these.
_PRECEDENCE = (FREE_CLASS, 14, 12, 13, 11, 16, 15, 0, 1, 10, 9, 3, 5, 4, 6, 2, 8, 7)
_RANK = np.argsort(_PRECEDENCE).astype(np.uint8)
_NX, _NY, _NZ = OCC3D_GRID.shape


@dataclass(frozen=True)
class OccupancyTruth:
    """One keyframe's label in base_link at the keyframe's time; axes x, y, z of `OCC3D_GRID`."""

    semantics: NDArray[np.uint8]  # (200, 200, 16) Occ3D class, 17 is free
    mask_camera: NDArray[np.bool_]  # (200, 200, 16) seen by a camera
    mask_lidar: NDArray[np.bool_]  # (200, 200, 16) in the lidar's line of sight


class Labeler:
    """Labels keyframes of one scene; build it once and use it for every keyframe.

    Its `lidar` is the scene's: `labeler.lidar.turn(drive, stamp_ns)` has the points of a sweep, too.
    """

    def __init__(self, scene: Scene, rig: CameraRig, stage: Stage | None = None):
        """`stage` is a renderer's, to work on its device instead of the CPU."""
        stage = stage or scene.stage
        device = stage.device
        self.lidar = Lidar(scene.ground, stage)
        self._rig = rig
        self._floor = _Floor(scene, device)
        self._scenery = _Scenery(scene.standing, scene.ground, device)
        self._agents = [torch.from_numpy(_surface(thing)).to(device) for thing in scene.agents]
        self._agent_ranks = [int(_RANK[thing.label]) for thing in scene.agents]
        self._classes = torch.tensor(_PRECEDENCE, dtype=torch.uint8, device=device)
        self._space = _Space(self.lidar, device)

    def occupancy(
        self,
        drive: Drive,
        stamp_ns: int,
        images: Mapping[str, CameraImage],
        panorama: Panorama | None = None,
    ) -> OccupancyTruth:
        """The label of the keyframe at `stamp_ns`.

        Args:
            drive: of this scene.
            stamp_ns: the keyframe's time, which is the lidar's.
            images: the set's pictures by camera name, of any size, each at its own camera's stamp.
            panorama: the lidar's turn at `stamp_ns`; made here where it is not given.
        """
        world_from_base = drive.world_from_base(stamp_ns)
        base_from_world = inverse(world_from_base)
        base_from_agents = base_from_world @ matrices_of(drive.agent_poses_at(stamp_ns))
        fixed = _joined([self._floor.near(world_from_base), self._scenery.near(world_from_base)])
        agents = self._agents_near(base_from_agents)
        samples = _joined([fixed, *agents.values()])
        best = torch.zeros(_NX * _NY * _NZ, dtype=torch.uint8, device=samples.rank.device)
        best.scatter_reduce_(0, samples.voxel, samples.rank, "amax")
        free = best == 0

        by_camera = torch.zeros_like(free)
        for camera in self._rig.cameras:
            image = images[camera.name]
            sight = _Sight.of(image, camera, best.device)
            camera_from_world = inverse(drive.world_from_base(image.stamp_ns) @ camera.base_from_camera)
            fixed_pose = camera_from_world @ world_from_base
            cells, centers_m = self._space.before(camera, sight.lens)
            cells = cells[sight.seen([(fixed_pose, centers_m)])]
            by_camera[cells[free[cells]]] = True
            # A thing that moves is seen where it is when the camera fires.
            then = camera_from_world @ matrices_of(drive.agent_poses_at(image.stamp_ns))
            parts = [(fixed_pose, fixed.points_m)]
            for agent, part in agents.items():
                parts.append((then[agent] @ inverse(base_from_agents[agent]), part.points_m))
            by_camera[samples.voxel[sight.seen(parts)]] = True

        panorama = panorama or self.lidar.turn(drive, stamp_ns)
        by_lidar = free & self._space.before_lidar(panorama)
        index, u, v, reach = self.lidar.directions(samples.points_m)
        visible = _in_sight(panorama.inverse_reach, u, v, reach, self.lidar.rays_per_rad)
        by_lidar[samples.voxel[index[visible]]] = True
        return OccupancyTruth(
            self._classes[best.int()].view(OCC3D_GRID.shape).cpu().numpy(),
            by_camera.view(OCC3D_GRID.shape).cpu().numpy(),
            by_lidar.view(OCC3D_GRID.shape).cpu().numpy(),
        )

    def _agents_near(self, base_from_agents: NDArray[np.float64]) -> dict[int, _Samples]:
        """Samples of the agents that reach into the grid, by their number."""
        near = np.abs(base_from_agents[:, :2, 3]).max(axis=1, initial=0) < OCC3D_GRID.max_m[0] + 8
        result = {}
        for agent in np.flatnonzero(near).tolist():
            points = _moved(base_from_agents[agent, :3], self._agents[agent])
            samples = _in_grid(
                points, torch.full_like(points[0], self._agent_ranks[agent], dtype=torch.uint8)
            )
            if len(samples.voxel):
                result[agent] = samples
        return result


@dataclass(frozen=True)
class _Samples:
    """Samples of surfaces inside the grid."""

    points_m: Tensor  # (3, N) in base_link at the keyframe's time
    voxel: Tensor  # (N,) flat index
    rank: Tensor  # (N,) uint8 place in _PRECEDENCE


@dataclass(frozen=True)
class _Sight:
    """A picture as a judge of what its camera sees."""

    lens: Lens
    inverse_depth: Tensor  # (H, W) 1/m, 0 in the sky

    @classmethod
    def of(cls, image: CameraImage, camera: RigCamera, device: torch.device) -> _Sight:
        height, width = image.depth_m.shape
        lens = lens_of(camera.calibration((width, height)))
        return cls(lens, 1 / torch.from_numpy(image.depth_m).to(device))

    def seen(self, parts: Sequence[tuple[NDArray[np.float64], Tensor]]) -> Tensor:
        """Which of all points are in view and not behind a surface.

        Args:
            parts: poses (4, 4) that take points (3, N) to the camera's frame.

        Returns:
            Rising indices into the points of all parts, end to end.
        """
        sides = _sides(self.lens)
        distances = torch.cat([_moved(sides @ pose[:3], points) for pose, points in parts], dim=1)
        index = (distances.amin(dim=0) > 0).nonzero()[:, 0]
        left, right, top, _ = distances.index_select(1, index)
        depth = (left + right) / self.lens.width_px
        return index[
            _in_sight(self.inverse_depth, left / depth - 0.5, top / depth - 0.5, depth, self.lens.fx)
        ]


class _Space:
    """The centers of all voxels, sorted by who may see them: the same for every keyframe of a rig."""

    def __init__(self, lidar: Lidar, device: torch.device):
        cells = np.indices(OCC3D_GRID.shape).reshape(3, -1)
        self._centers_m = torch.from_numpy(OCC3D_GRID.centers_m(cells.T).T.copy()).to(device)
        self._before: dict[tuple[str, Lens], tuple[Tensor, Tensor]] = {}
        self._lidar_cells, u, v, reach = lidar.directions(self._centers_m)
        self._lidar_pixel = v.round().long() * lidar.elevations + u.round().long()
        self._lidar_limit = reach * (1 - NEAR_SHARE) - NEAR_M

    def before(self, camera: RigCamera, lens: Lens) -> tuple[Tensor, Tensor]:
        """Voxels that a picture may show however the ego moves in a set: flat indices, centers (3, N)."""
        key = camera.name, lens
        if key not in self._before:
            sides = _sides(lens)
            sides /= np.linalg.norm(sides, axis=1, keepdims=True)
            distance_m = _moved(sides @ inverse(camera.base_from_camera)[:3], self._centers_m)
            cells = (distance_m.amin(dim=0) > -_MOTION_M).nonzero()[:, 0]
            self._before[key] = cells, self._centers_m.index_select(1, cells)
        return self._before[key]

    def before_lidar(self, panorama: Panorama) -> Tensor:
        """(voxels,) bool: whether the lidar sees the center of a voxel."""
        first = panorama.inverse_reach.reshape(-1).index_select(0, self._lidar_pixel)
        seen = torch.zeros(self._centers_m.shape[1], dtype=torch.bool, device=first.device)
        seen[self._lidar_cells] = first * self._lidar_limit < 1
        return seen


class _Floor:
    """The ground of a scene without what lies under buildings."""

    def __init__(self, scene: Scene, device: torch.device):
        self._origin_m = scene.ground.origin_m
        self._corners_m = torch.from_numpy(scene.ground.corners_m).to(device)
        self._fields = torch.from_numpy(scene.ground.fields).to(device)
        self._covered = torch.from_numpy(_footprints(scene)).to(device)
        self._ranks = torch.from_numpy(_RANK).to(device)
        # Four samples in each column of voxels: (4, columns).
        columns = np.indices((_NX, _NY)).reshape(2, 1, -1)
        quarter = np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])[..., None] / 4
        middle = (columns + 0.5 + quarter) * OCC3D_GRID.voxel_size_m
        self._x, self._y = (
            torch.from_numpy(middle[axis].ravel() + OCC3D_GRID.min_m[axis]).float().to(device)
            for axis in (0, 1)
        )
        self._column = torch.from_numpy(np.tile((columns[0, 0] * _NY + columns[1, 0]) * _NZ, 4)).to(device)

    def near(self, world_from_base: NDArray[np.float64]) -> _Samples:
        """Where the mesh of the ground passes through the grid."""
        pose = torch.from_numpy(world_from_base).float().to(self._x.device)
        flat = [pose[k, 0] * self._x + (pose[k, 1] * self._y + pose[k, 3]) for k in range(3)]
        z = torch.zeros_like(self._x)
        for _ in range(2):  # base_link tilts a little: each turn comes a hundred times closer
            x_world, y_world, z_world = (flat[k] + pose[k, 2] * z for k in range(3))
            z += (mesh_height(self._corners_m, self._origin_m, x_world, y_world) - z_world) / pose[2, 2]
        # One class for each column, that at its middle, so that no class grows at the cost of another.
        middle = torch.stack([x_world.view(4, -1).mean(dim=0), y_world.view(4, -1).mean(dim=0)], dim=-1)
        kind = classify(sample_fields(self._fields[:4], self._origin_m, middle))
        column = ((x_world - self._origin_m[0]) / SPACING_M).long()
        row = ((y_world - self._origin_m[1]) / SPACING_M).long()
        covered = self._covered.reshape(-1).index_select(0, row * self._covered.shape[1] + column)
        level = ((z - OCC3D_GRID.min_m[2]) / OCC3D_GRID.voxel_size_m).floor()
        kept = (~covered & (level >= 0) & (level < _NZ)).nonzero()[:, 0]
        return _Samples(
            torch.stack([self._x, self._y, z]).index_select(1, kept),
            (self._column + level.long()).index_select(0, kept),
            self._ranks[kind.int()].repeat(4).index_select(0, kept),
        )


class _Scenery:
    """Samples of everything that stands."""

    def __init__(self, standing: Sequence[Thing], ground: Ground, device: torch.device):
        corners = torch.from_numpy(ground.corners_m)
        self._points_m: list[Tensor] = []  # (3, N) in the world, by thing
        self._ranks: list[Tensor] = []
        for thing in standing:
            points = _moved(matrices_of(thing.pose)[:3], torch.from_numpy(_surface(thing)))
            # Walls reach under the ground, because the ground slopes.
            height = mesh_height(corners, ground.origin_m, points[0], points[1])
            points = points[:, points[2] > height - NEAR_M].contiguous().to(device)
            self._points_m.append(points)
            self._ranks.append(torch.full_like(points[0], int(_RANK[thing.label]), dtype=torch.uint8))
        self._centers_m = np.array([thing.pose[:2] for thing in standing]).reshape(-1, 2)
        self._radius_m = np.array([np.hypot(*thing.size_m[:2]) for thing in standing])

    def near(self, world_from_base: NDArray[np.float64]) -> _Samples:
        """Where things that stand pass through the grid."""
        distance = np.linalg.norm(self._centers_m - world_from_base[:2, 3], axis=1)
        chosen = np.flatnonzero(distance < REACH_M + self._radius_m)
        points = torch.cat([self._points_m[i] for i in chosen], dim=1)
        ranks = torch.cat([self._ranks[i] for i in chosen])
        return _in_grid(_moved(inverse(world_from_base)[:3], points), ranks)


def _sides(lens: Lens) -> NDArray[np.float64]:
    """Forms (4, 3) of a camera's points: pixels from a side of the picture times depth, positive inside."""
    return np.array(
        [
            [lens.fx, 0, lens.cx + 0.5],
            [-lens.fx, 0, lens.width_px - 0.5 - lens.cx],
            [0, lens.fy, lens.cy + 0.5],
            [0, -lens.fy, lens.height_px - 0.5 - lens.cy],
        ]
    )


def _in_sight(inverse_depth: Tensor, u: Tensor, v: Tensor, depth_m: Tensor, focal: float) -> Tensor:
    """(N,) whether points at pixels u, v and depths lie before or on the first surface of a picture (H, W).

    Within a flat surface inverse depth is linear, so that interpolation is exact. Where it changes by more
    than a surface `CLOSEST_M` beside the eye would make it change, something ends between the four rays
    around: then a point must not be behind the nearest of them.
    """
    height, width = inverse_depth.shape
    column, row = u.floor().clamp(0, width - 2), v.floor().clamp(0, height - 2)
    right, down = (u - column).clamp(0, 1), (v - row).clamp(0, 1)
    corner = (row * width + column).long()
    flat = inverse_depth.reshape(-1)
    a, b, c, d = (flat.index_select(0, corner + step) for step in (0, 1, width, width + 1))
    top, bottom = a + (b - a) * right, c + (d - c) * right
    between = top + (bottom - top) * down
    nearest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    farthest = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
    first = torch.where(nearest - farthest < 1 / (CLOSEST_M * focal), between, nearest)
    return first * (depth_m * (1 - NEAR_SHARE) - NEAR_M) < 1


def _moved(rows: NDArray[np.floating], points_m: Tensor) -> Tensor:
    """Affine forms (K, 4) of points (3, N): (K, N)."""
    matrix = torch.from_numpy(rows).float().to(points_m.device)
    return torch.addmm(matrix[:, 3:], matrix[:, :3], points_m)


def _in_grid(points_m: Tensor, ranks: Tensor) -> _Samples:
    low = torch.tensor(OCC3D_GRID.min_m, device=points_m.device)[:, None]
    cell = ((points_m - low) / OCC3D_GRID.voxel_size_m).floor().int()
    x, y, z = cell
    inside = (cell.amin(dim=0) >= 0) & (x < _NX) & (y < _NY) & (z < _NZ)
    kept = inside.nonzero()[:, 0]
    voxel = ((x * _NY + y) * _NZ + z).index_select(0, kept).long()
    return _Samples(points_m.index_select(1, kept), voxel, ranks.index_select(0, kept))


def _joined(parts: Sequence[_Samples]) -> _Samples:
    return _Samples(
        torch.cat([part.points_m for part in parts], dim=1),
        torch.cat([part.voxel for part in parts]),
        torch.cat([part.rank for part in parts]),
    )


def _surface(thing: Thing) -> NDArray[np.float32]:
    """Points (3, N) all over a thing's faces, at most `SPACING_M` apart, in its own frame."""
    faces = thing.body.faces[0]
    a, b, c, d = faces.transpose(1, 0, 2)

    def steps(*edges: NDArray[np.float32]) -> NDArray[np.int64]:
        longest = np.max([np.linalg.norm(edge, axis=1) for edge in edges], axis=0)
        return np.maximum(np.ceil(longest / SPACING_M), 1).astype(np.int64)

    across, up = steps(b - a, c - d), steps(d - a, c - b)
    face = np.repeat(np.arange(len(faces)), across * up)
    number = np.arange(len(face)) - np.repeat(np.cumsum(across * up) - across * up, across * up)
    u = ((number % across[face] + 0.5) / across[face]).astype(np.float32)[:, None]
    v = ((number // across[face] + 0.5) / up[face]).astype(np.float32)[:, None]
    points = (1 - v) * ((1 - u) * a[face] + u * b[face]) + v * ((1 - u) * d[face] + u * c[face])
    return np.ascontiguousarray(points[points[:, 2] < TOP_M].T)


def _footprints(scene: Scene) -> NDArray[np.bool_]:
    """What ground lies under buildings: rows y, columns x, `SPACING_M` apart from the ground's origin on."""
    ny, nx = (np.array(scene.ground.fields.shape[1:]) * (CELL_M / SPACING_M)).astype(int)
    raster = np.zeros((ny, nx), np.uint8)
    for thing in scene.standing:
        if thing.kind == "building":
            corners = corners_m(thing.pose[[0, 1, 3]], np.array(thing.size_m[:2]))
            pixels = (corners - scene.ground.origin_m) / SPACING_M - 0.5
            cv2.fillConvexPoly(raster, np.round(pixels).astype(np.int32), [1])
    return raster > 0
