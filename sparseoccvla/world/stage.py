"""The geometry of a scene on one device, ready to be seen from anywhere at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.world.caster import Hits, Lens, cast
from sparseoccvla.world.ground import Ground
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.shapes import Material
from sparseoccvla.world.things import Thing

FAR_M = 1500.0
LEAST_PIXELS = 0.35  # faces whose radius is smaller than this in the picture are left out
FACING_M = 0.01  # the camera may be this far behind a face's plane before the face is left out


@dataclass(frozen=True)
class Faces:
    """Flat convex faces in the world frame, with what shading needs of each."""

    vertices_m: Tensor  # (F, 4, 3) float32
    normals: Tensor  # (F, 3)
    albedo: Tensor  # (F, 3) linear light
    material: Tensor  # (F,) int64
    label: Tensor  # (F,) uint8 Occ3D class; that of ground is read from its fields
    instance: Tensor  # (F,) int32
    glow: Tensor  # (F,) light of its own, in units of albedo

    def select(self, index: Tensor) -> Faces:
        return Faces(*(getattr(self, name).index_select(0, index) for name in self.__dataclass_fields__))

    def join(self, other: Faces) -> Faces:
        return Faces(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in self.__dataclass_fields__))


@dataclass(frozen=True)
class AgentLook:
    """Where agents are and what their lamps do at one time."""

    poses: NDArray[np.float64]  # (A, 6)
    braking: NDArray[np.bool_]  # (A,)
    signals: NDArray[np.int8]  # (A,) 1 left, -1 right


class Stage:
    """Static faces once, moving ones wherever they are at the asked time.

    Instance numbers start at 1 and count `standing`, then `agents`.
    """

    def __init__(
        self, ground: Ground, standing: Sequence[Thing], agents: Sequence[Thing], device: torch.device
    ):
        self.device = device
        triangles = torch.from_numpy(ground.mesh)
        floor = torch.cat([triangles, triangles[:, 2:]], dim=1)
        count = len(floor)
        earth = Faces(
            floor,
            _normals(floor),
            torch.zeros(count, 3),
            torch.full((count,), int(Material.GROUND)),
            torch.full((count,), 14, dtype=torch.uint8),
            torch.zeros(count, dtype=torch.int32),
            torch.zeros(count),
        )
        things, owner = _faces_of(standing, 1)
        poses = torch.from_numpy(matrices_of(np.array([thing.pose for thing in standing]).reshape(-1, 6)))
        self._static = _to(earth.join(_placed(things, owner, poses.float())), device)
        self._static_bounds = Bounds.of(self._static)
        self.ground_count = count
        moving, owner = _faces_of(agents, 1 + len(standing))
        self._moving, self._owner = _to(moving, device), owner.to(device)

    @property
    def static(self) -> Faces:
        """Ground first (`ground_count` faces), then what stands."""
        return self._static

    def moving(self, look: AgentLook) -> Faces:
        """Faces of all agents, with the lamps that are lit."""
        pose = torch.from_numpy(matrices_of(look.poses)).float().to(self.device)
        material = self._moving.material
        braking = torch.from_numpy(look.braking).to(self.device)[self._owner]
        signal = torch.from_numpy(look.signals.astype(np.int64)).to(self.device)[self._owner]
        shines = (
            ((material == Material.BRAKE) & braking)
            | ((material == Material.LEFT_SIGNAL) & (signal > 0))
            | ((material == Material.RIGHT_SIGNAL) & (signal < 0))
        )
        return replace(_placed(self._moving, self._owner, pose), glow=shines.float() * 2.2)

    def cast(self, world_from_camera: Tensor, lens: Lens, moving: Faces) -> tuple[Hits, Faces]:
        """Rays through every pixel of a camera (4, 4); hits number the faces that come with them."""
        faces, vertices_m = self.in_view(world_from_camera, lens, moving)
        return cast(vertices_m, lens), faces

    def in_view(
        self, world_from_camera: Tensor, lens: Lens, moving: Faces, far_m: float = FAR_M
    ) -> tuple[Faces, Tensor]:
        """Faces that a camera (4, 4) may see, turned to it, and their corners (F, 4, 3) in its frame."""
        chosen = self._static_bounds.in_view(world_from_camera, lens, far_m)
        also = Bounds.of(moving).in_view(world_from_camera, lens, far_m)
        faces = self._static.select(chosen).join(moving.select(also))
        return faces, (faces.vertices_m - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]


def _to(faces: Faces, device: torch.device) -> Faces:
    return Faces(*(getattr(faces, name).to(device) for name in faces.__dataclass_fields__))


def _normals(vertices_m: Tensor) -> Tensor:
    normal = torch.linalg.cross(vertices_m[:, 1] - vertices_m[:, 0], vertices_m[:, 2] - vertices_m[:, 0])
    return normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _faces_of(things: Sequence[Thing], first_instance: int) -> tuple[Faces, Tensor]:
    """Faces in their things' own frames, and the index of the thing that each belongs to."""
    parts = [thing.body.faces for thing in things]
    counts = torch.tensor([len(vertices) for vertices, _, _ in parts], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(things)), counts)
    empty = (np.zeros((0, 4, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.uint8))
    vertices, colors, material = (
        torch.from_numpy(np.concatenate(column)) for column in zip(empty, *parts, strict=True)
    )
    label = torch.tensor([thing.label for thing in things], dtype=torch.uint8)
    faces = Faces(
        vertices,
        _normals(vertices),
        colors**2,
        material.to(torch.int64),
        label[owner] if len(things) else label,
        (owner + first_instance).to(torch.int32),
        torch.zeros(len(vertices)),
    )
    return faces, owner


def _placed(faces: Faces, owner: Tensor, world_from_thing: Tensor) -> Faces:
    pose = world_from_thing.index_select(0, owner)
    rotation = pose[:, :3, :3].transpose(1, 2)
    vertices = torch.bmm(faces.vertices_m, rotation) + pose[:, None, :3, 3]
    normals = torch.bmm(faces.normals[:, None], rotation)[:, 0]
    return replace(faces, vertices_m=vertices, normals=normals)


@dataclass(frozen=True)
class Bounds:
    """What tells quickly that a face can't be in a picture."""

    center_m: Tensor  # (3, F)
    radius_m: Tensor  # (F,)
    normals: Tensor  # (F, 3)
    offset_m: Tensor  # (F,) of the face's plane: normal . point = offset

    @classmethod
    def of(cls, faces: Faces) -> Bounds:
        center = (faces.vertices_m[:, 0] + faces.vertices_m[:, 2]) / 2
        radius = (faces.vertices_m - center[:, None]).square().sum(dim=-1).amax(dim=1).sqrt()
        offset = (faces.normals * faces.vertices_m[:, 0]).sum(dim=1)
        return cls(center.T.contiguous(), radius, faces.normals, offset)

    def in_view(self, world_from_camera: Tensor, lens: Lens, far_m: float) -> Tensor:
        """Indices of faces turned to a camera that may be in its picture, not too small and not too far."""
        left, right = -lens.cx / lens.fx, (lens.width_px - lens.cx) / lens.fx
        low = (lens.first_row - lens.cy) / lens.fy
        high = ((lens.end_row or lens.height_px) - lens.cy) / lens.fy
        # Planes through the camera and one side of the picture, and the one across its view.
        sides = torch.tensor(
            [[1, 0, -left], [-1, 0, right], [0, 1, -low], [0, -1, high], [0, 0, 1]],
            dtype=torch.float32,
            device=self.radius_m.device,
        )
        sides /= sides.norm(dim=1, keepdim=True)
        turned = sides @ world_from_camera[:3, :3].T
        eye = world_from_camera[:3, 3]
        distance = torch.addmm(-(turned @ eye)[:, None], turned, self.center_m)
        z = distance[4]
        seen = (distance.amin(dim=0) > -self.radius_m) & (z < far_m)
        seen &= self.radius_m * lens.fx > LEAST_PIXELS * z
        seen &= self.normals @ eye > self.offset_m - FACING_M
        return seen.nonzero()[:, 0]
