"""Occupancy of the world on the Occ3D grid, and which of it cameras and lidar see.

A voxel is occupied where a surface passes through it: things are hollow and stand on one layer of ground,
as in labels made from lidar points. Surfaces are kept as samples at most `SPACING_M` apart, and a voxel is
occupied when a sample lies in it, so that every point of a surface is within half that distance of an
occupied voxel. Where several surfaces share a voxel, things that move win over scenery, and both over ground.

What is seen is asked of the surfaces themselves, not of voxel centers: seen at a grazing angle, far ground
leaves a picture's ray meters before the center of its voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from sparseoccvla.contracts import OCC3D_GRID
from sparseoccvla.geometry import inverse
from sparseoccvla.world.boxes import corners_m
from sparseoccvla.world.cameras import LIDAR_POSITION_M, CameraRig, looking
from sparseoccvla.world.caster import Lens
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.ground import CELL_M, Ground, classify, mesh_height, sample_fields
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.render import CameraImage, lens_of
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.things import Thing

SPACING_M = 0.2
REACH_M = 57.0  # from the middle of the grid to its corners
TOP_M = 14.0  # samples higher above the ground than this can't be in the grid, however steep the road
# How far behind the first surface a point still counts as on it: rounding, and facets of round things.
NEAR_M, NEAR_SHARE = 0.05, 0.01
# Which class a voxel takes that several surfaces share: the last of these.
_PRECEDENCE = (17, 14, 12, 13, 11, 16, 15, 0, 1, 10, 9, 3, 5, 4, 6, 2, 8, 7)
_RANK = np.argsort(_PRECEDENCE).tolist()


@dataclass(frozen=True)
class OccupancyTruth:
    """One keyframe's label in base_link at the keyframe's time; axes x, y, z of `OCC3D_GRID`."""

    semantics: NDArray[np.uint8]  # (200, 200, 16) Occ3D class, 17 is free
    mask_camera: NDArray[np.bool_]  # (200, 200, 16) seen by a camera
    mask_lidar: NDArray[np.bool_]  # (200, 200, 16) in the lidar's line of sight


@dataclass(frozen=True)
class Sight:
    """What one eye sees at one time: the first surface on each of its rays."""

    stamp_ns: int
    world_from_eye: NDArray[np.float64]  # (4, 4), z forward
    lens: Lens
    inverse_depth: Tensor  # (H, W) 1/m, 0 in the sky

    def seen(self, eye_from_points: NDArray[np.floating], points_m: Tensor) -> Tensor:
        """Indices of the points (N, 3) of some frame that are in view and not behind a surface."""
        matrix = torch.from_numpy(eye_from_points).float().to(points_m.device)
        x, y, z = (points_m @ matrix[:3, :3].T + matrix[:3, 3]).unbind(dim=1)
        lens = self.lens
        ahead = z.clamp(min=0.1)
        u, v = lens.fx * x / ahead + lens.cx, lens.fy * y / ahead + lens.cy
        inside = (z > 0.1) & (u > -0.5) & (u < lens.width_px - 0.5) & (v > -0.5) & (v < lens.height_px - 0.5)
        index = inside.nonzero()[:, 0]
        u, v, z = (value.index_select(0, index) for value in (u, v, z))
        # Within a flat surface inverse depth is linear, so that interpolation is exact; at its border the
        # nearest ray decides.
        grid = torch.stack([u * (2 / (lens.width_px - 1)) - 1, v * (2 / (lens.height_px - 1)) - 1], dim=-1)
        picture = self.inverse_depth[None, None]
        between, nearest = (
            grid_sample(picture, grid[None, None], mode, padding_mode="border", align_corners=True)[0, 0, 0]
            for mode in ("bilinear", "nearest")
        )
        visible = torch.minimum(between, nearest) * (z * (1 - NEAR_SHARE) - NEAR_M) < 1
        return index[visible]


class Labeler:
    """Labels keyframes of one scene; build it once and use it for every keyframe."""

    def __init__(self, scene: Scene, rig: CameraRig, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self._rig = rig
        self._stage = scene.stage
        self._floor = _Floor(scene, self.device)
        self._scenery = _Scenery(scene.standing, scene.ground, self.device)
        self._agents = [torch.from_numpy(_samples(thing)).to(self.device) for thing in scene.agents]
        self._agent_ranks = [_RANK[thing.label] for thing in scene.agents]
        self._classes = torch.tensor(_PRECEDENCE, dtype=torch.uint8, device=self.device)
        cells = np.indices(OCC3D_GRID.shape).reshape(3, -1).T
        self._centers_m = torch.from_numpy(OCC3D_GRID.centers_m(cells)).to(self.device)

    def occupancy(self, drive: Drive, stamp_ns: int, images: Mapping[str, CameraImage]) -> OccupancyTruth:
        """The label of the keyframe at `stamp_ns`.

        Args:
            drive: of this scene.
            stamp_ns: the keyframe's time, which is the lidar's.
            images: the set's pictures by camera name, of any size, each at its own camera's stamp.
        """
        world_from_base = drive.world_from_base(stamp_ns)
        surfaces = [
            _in_grid(*self._floor.near(world_from_base)),
            _in_grid(*self._scenery.near(world_from_base)),
        ]
        poses = matrices_of(drive.agent_poses_at(stamp_ns))
        base_from_world = inverse(world_from_base)
        agents = []
        for number, (points, rank) in enumerate(zip(self._agents, self._agent_ranks, strict=True)):
            base_from_agent = base_from_world @ poses[number]
            if np.abs(base_from_agent[:2, 3]).max() < 40 + 10:
                moved = _moved(base_from_agent, points)
                surface = _in_grid(moved, torch.full((len(moved),), rank, device=self.device))
                if len(surface.voxel):
                    agents.append((number, surface))
        best = torch.zeros(int(np.prod(OCC3D_GRID.shape)), dtype=torch.int64, device=self.device)
        every = [*surfaces, *(surface for _, surface in agents)]
        best.scatter_reduce_(
            0, torch.cat([s.voxel for s in every]), torch.cat([s.rank for s in every]), "amax"
        )
        free = best == 0

        def visible(sights: list[Sight]) -> NDArray[np.bool_]:
            seen = torch.zeros_like(free)
            for sight in sights:
                eye_from_world = inverse(sight.world_from_eye)
                eye_from_base = eye_from_world @ world_from_base
                centers = sight.seen(eye_from_base, self._centers_m)
                seen[centers[free[centers]]] = True
                for surface in surfaces:
                    seen[surface.voxel[sight.seen(eye_from_base, surface.points_m)]] = True
                then = matrices_of(drive.agent_poses_at(sight.stamp_ns))
                for number, surface in agents:
                    # A moving thing is seen where it is when the camera fires.
                    moved = eye_from_world @ then[number] @ inverse(poses[number]) @ world_from_base
                    seen[surface.voxel[sight.seen(moved, surface.points_m)]] = True
            return seen.view(OCC3D_GRID.shape).cpu().numpy()

        cameras = [self._camera_sight(drive, images[camera.name]) for camera in self._rig.cameras]
        return OccupancyTruth(
            self._classes[best].view(OCC3D_GRID.shape).cpu().numpy(),
            visible(cameras),
            visible(self._lidar_sights(drive, stamp_ns)),
        )

    def _camera_sight(self, drive: Drive, image: CameraImage) -> Sight:
        camera = self._rig[image.camera]
        height, width = image.depth_m.shape
        return Sight(
            image.stamp_ns,
            drive.world_from_base(image.stamp_ns) @ camera.base_from_camera,
            lens_of(camera.calibration((width, height))),
            1 / torch.from_numpy(image.depth_m).to(self.device),
        )

    def _lidar_sights(self, drive: Drive, stamp_ns: int) -> list[Sight]:
        moving = self._stage.moving(drive.look_at(stamp_ns))
        sights = []
        for quarter in range(4):
            world_from_eye = drive.world_from_base(stamp_ns) @ looking(LIDAR_POSITION_M, quarter * np.pi / 2)
            lens = Lens(128, 96, 127.5, 24, 256, 104)
            hits, _ = self._stage.cast(torch.from_numpy(world_from_eye).float(), lens, moving)
            sights.append(Sight(stamp_ns, world_from_eye, lens, hits.inverse_depth.to(self.device)))
        return sights


@dataclass(frozen=True)
class _Surface:
    """Samples of surfaces inside the grid."""

    points_m: Tensor  # (N, 3) in base_link at the keyframe's time
    voxel: Tensor  # (N,) flat index
    rank: Tensor  # (N,) place in _PRECEDENCE


class _Floor:
    """The ground of a scene without what lies under buildings."""

    def __init__(self, scene: Scene, device: torch.device):
        self._origin_m = scene.ground.origin_m
        self._corners_m = torch.from_numpy(scene.ground.corners_m).to(device)
        self._fields = torch.from_numpy(scene.ground.fields).to(device)
        self._covered = torch.from_numpy(_footprints(scene)).to(device)
        self._ranks = torch.tensor(_RANK, device=device)
        low, high = OCC3D_GRID.min_m, OCC3D_GRID.max_m
        x, y = (
            torch.arange(low[axis] + SPACING_M / 2, high[axis], SPACING_M, device=device) for axis in (0, 1)
        )
        self._lattice = torch.cartesian_prod(x, y)

    def near(self, world_from_base: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Samples (N, 3) in base_link and their ranks."""
        pose = torch.from_numpy(world_from_base).float().to(self._lattice.device)
        points = torch.cat([self._lattice, torch.zeros_like(self._lattice[:, :1])], dim=1)
        for _ in range(3):  # base_link tilts a little: each turn brings it a hundred times closer
            world = points @ pose[:3, :3].T + pose[:3, 3]
            height = mesh_height(self._corners_m, self._origin_m, world[:, :2])
            points[:, 2] += (height - world[:, 2]) / pose[2, 2]
        rank = self._ranks[classify(sample_fields(self._fields, self._origin_m, world[:, :2])).long()]
        cell = ((world[:, :2] - torch.tensor(self._origin_m, device=pose.device)) / SPACING_M).long()
        bare = ~self._covered[cell[:, 1], cell[:, 0]]
        return points[bare], rank[bare]


class _Scenery:
    """Samples of everything that stands."""

    def __init__(self, standing: Sequence[Thing], ground: Ground, device: torch.device):
        parts = []
        corners = torch.from_numpy(ground.corners_m)
        for thing in standing:
            points = torch.from_numpy(_samples(thing))
            points = _moved(matrices_of(thing.pose), points)
            # Walls reach under the ground, because the ground slopes.
            height = mesh_height(corners, ground.origin_m, points[:, :2])
            parts.append(points[points[:, 2] > height - NEAR_M])
        self._centers_m = np.array([thing.pose[:2] for thing in standing]).reshape(-1, 2)
        self._radius_m = np.array([np.hypot(*thing.size_m[:2]) / 2 + 1 for thing in standing])
        self._points = [part.to(device) for part in parts]
        self._ranks = [
            torch.full((len(part),), _RANK[thing.label], device=device)
            for part, thing in zip(parts, standing, strict=True)
        ]

    def near(self, world_from_base: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Samples (N, 3) in base_link and their ranks."""
        distance = np.linalg.norm(self._centers_m - world_from_base[:2, 3], axis=1)
        chosen = np.flatnonzero(distance < REACH_M + self._radius_m)
        points = torch.cat([self._points[i] for i in chosen])
        return _moved(inverse(world_from_base), points), torch.cat([self._ranks[i] for i in chosen])


def _moved(a_from_b: NDArray[np.floating], points_m: Tensor) -> Tensor:
    matrix = torch.from_numpy(a_from_b).float().to(points_m.device)
    return points_m @ matrix[:3, :3].T + matrix[:3, 3]


def _in_grid(points_m: Tensor, rank: Tensor) -> _Surface:
    low = torch.tensor(OCC3D_GRID.min_m, device=points_m.device)
    shape = torch.tensor(OCC3D_GRID.shape, device=points_m.device)
    cell = ((points_m - low) / OCC3D_GRID.voxel_size_m).floor().long()
    inside = ((cell >= 0) & (cell < shape)).all(dim=1).nonzero()[:, 0]
    cell = cell[inside]
    _, ny, nz = OCC3D_GRID.shape
    return _Surface(points_m[inside], (cell[:, 0] * ny + cell[:, 1]) * nz + cell[:, 2], rank[inside])


def _samples(thing: Thing) -> NDArray[np.float32]:
    """Points (N, 3) all over a thing's faces, at most `SPACING_M` apart, in its own frame."""
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
    return points[points[:, 2] < TOP_M]


def _footprints(scene: Scene) -> NDArray[np.bool_]:
    """What ground (rows y, columns x, `SPACING_M` apart from the ground's origin on) lies under buildings."""
    ny, nx = (np.array(scene.ground.fields.shape[1:]) * (CELL_M / SPACING_M)).astype(int)
    raster = np.zeros((ny, nx), np.uint8)
    for thing in scene.standing:
        if thing.kind == "building":
            corners = corners_m(thing.pose[[0, 1, 3]], np.array(thing.size_m[:2]))
            pixels = (corners - scene.ground.origin_m) / SPACING_M - 0.5
            cv2.fillConvexPoly(raster, np.round(pixels).astype(np.int32), [1])
    return raster > 0
