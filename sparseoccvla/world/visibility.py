"""How much of every annotated thing cameras and lidar see, in the terms of nuScenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.geometry import inverse
from sparseoccvla.world.cameras import CameraRig
from sparseoccvla.world.caster import Lens, outlines
from sparseoccvla.world.drive import Box, Drive
from sparseoccvla.world.lidar import BASE_FROM_LIDAR
from sparseoccvla.world.render import CameraImage, lens_of
from sparseoccvla.world.stage import FAR_M, Bounds, Faces, Stage

_LEVEL_ENDS = (0.4, 0.6, 0.8)


class Onlooker:
    """Compares what pictures of a scene show of things with what they would show of each alone."""

    def __init__(self, drive: Drive, stage: Stage, rig: CameraRig):
        """`stage` is the scene's, on the device that is to be used."""
        self._drive, self._stage, self._rig = drive, stage, rig
        self._count = len(drive.standing) + len(drive.agents) + 1
        annotated = torch.zeros(self._count, dtype=torch.bool, device=stage.device)
        for number, thing in enumerate(drive.standing, start=1):
            annotated[number] = bool(thing.category)
        index = annotated[stage.static.instance.long()].nonzero()[:, 0]
        self._standing = stage.static.select(index)
        self._bounds = Bounds.of(self._standing)

    def shares(self, images: Iterable[CameraImage]) -> NDArray[np.float64]:
        """Visible share (instances,) of what a set of pictures would show of each thing alone.

        Indices are instance numbers as in the pictures; NaN where a thing is outside of all pictures.
        """
        alone = np.zeros(self._count, np.int64)
        shown = np.zeros(self._count, np.int64)
        for image in images:
            camera = self._rig[image.camera]
            height, width = image.depth_m.shape
            lens = lens_of(camera.calibration((width, height)))
            pose = self._drive.world_from_base(image.stamp_ns) @ camera.base_from_camera
            world_from_camera = torch.from_numpy(pose).float().to(self._stage.device)
            moving = self._stage.moving(self._drive.look_at(image.stamp_ns))
            faces = _seen(self._standing, self._bounds, world_from_camera, lens).join(
                _seen(moving, Bounds.of(moving), world_from_camera, lens)
            )
            vertices = (faces.vertices_m - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
            things, pixels = outlines(vertices, faces.instance.long(), lens)
            alone[things.cpu().numpy()] += pixels.cpu().numpy()
            shown += np.bincount(image.instance_ids.ravel(), minlength=self._count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(alone > 0, np.minimum(shown / alone, 1.0), np.nan)


def _seen(faces: Faces, bounds: Bounds, world_from_camera: Tensor, lens: Lens) -> Faces:
    return faces.select(bounds.in_view(world_from_camera, lens, FAR_M))


def visibility_level(share: float) -> str:
    """The nuScenes visibility token of a share of pixels; what is in no picture is 1, as the hidden is."""
    return str(1 + int(np.searchsorted(_LEVEL_ENDS, np.nan_to_num(share), side="right")))


def lidar_points_in(
    boxes: Sequence[Box], points_m: NDArray[np.float32], world_from_base: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many points (boxes,) of the lidar's frame, (N, 3) or more columns, lie in each box."""
    points = points_m[:, :3].T
    reach_m = np.hypot(points[0], points[1])
    counts = np.zeros(len(boxes), np.int64)
    world_from_lidar = world_from_base @ BASE_FROM_LIDAR
    for number, box in enumerate(boxes):
        width, length, height = box.size_m
        box_from_lidar = inverse(box.world_from_box) @ world_from_lidar
        distance = np.linalg.norm(inverse(box_from_lidar)[:2, 3])
        near = np.abs(reach_m - distance) < np.linalg.norm(box.size_m) / 2
        inside = np.abs(box_from_lidar[:3, :3] @ points[:, near] + box_from_lidar[:3, 3:])
        counts[number] = (inside <= np.array([[length], [width], [height]]) / 2).all(axis=0).sum()
    return counts
