"""Pictures of a scene: rays from `caster`, colors from `shading`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sparseoccvla.contracts import FREE_CLASS, CameraCalibration
from sparseoccvla.world.cameras import RigCamera
from sparseoccvla.world.caster import Lens
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.shading import Shader, ShadowMap, View
from sparseoccvla.world.stage import Stage


@dataclass(frozen=True)
class CameraImage:
    """One picture and what is in it. Depth is along the optical axis, `inf` in the sky."""

    camera: str
    stamp_ns: int
    rgb: NDArray[np.uint8]  # (H, W, 3)
    class_ids: NDArray[np.uint8]  # (H, W) Occ3D, FREE_CLASS in the sky
    depth_m: NDArray[np.float32]  # (H, W)
    instance_ids: NDArray[np.int32]  # (H, W) as Box.instance, 0 on the ground and in the sky


def lens_of(calibration: CameraCalibration) -> Lens:
    """The caster's view of a calibration: both center pixel (0, 0) at (0, 0)."""
    k = calibration.image_from_camera
    return Lens(
        float(k[0, 0]),
        float(k[1, 1]),
        float(k[0, 2]),
        float(k[1, 2]),
        calibration.width_px,
        calibration.height_px,
    )


class Renderer:
    """Takes pictures of one scene on one device; build it once and use it for every picture."""

    def __init__(self, scene: Scene, device: str | torch.device = "cpu"):
        self.scene = scene
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        self.stage = scene.stage if on_cpu else Stage(scene.ground, scene.standing, scene.agents, self.device)
        self._shader = Shader(scene.city, scene.sky, scene.ground, self.device)
        self._shadow = ShadowMap.over(self.stage.static, self.stage.ground_count, scene.sky)

    def render(
        self, drive: Drive, camera: RigCamera, stamp_ns: int, size: tuple[int, int] = (704, 396)
    ) -> CameraImage:
        """The picture of `size` (width, height) that a camera takes at `stamp_ns`, its mid-exposure stamp."""
        return self.through(lens_of(camera.calibration(size)), drive, camera, stamp_ns)

    def through(self, lens: Lens, drive: Drive, camera: RigCamera, stamp_ns: int) -> CameraImage:
        """The picture through any lens in a camera's place: a part of its picture has one of its own."""
        pose = drive.world_from_base(stamp_ns) @ camera.base_from_camera
        world_from_camera = torch.from_numpy(pose).float().to(self.device)
        moving = self.stage.moving(drive.look_at(stamp_ns))
        hits, faces = self.stage.cast(world_from_camera, lens, moving)
        with self._shadow.joined_by(moving.vertices_m) if self._shadow else nullcontext():
            rgb, ground = self._shader.shade(hits, View(world_from_camera, lens), faces, self._shadow)
        seen = hits.face >= 0
        face = hits.face.clamp(min=0)
        label = torch.where(seen, faces.label[face], FREE_CLASS).to(torch.uint8)
        return CameraImage(
            camera.name,
            stamp_ns,
            rgb.cpu().numpy(),
            torch.where(ground != FREE_CLASS, ground, label).cpu().numpy(),
            torch.where(seen, 1 / hits.inverse_depth, torch.inf).cpu().numpy(),
            torch.where(seen, faces.instance[face], 0).cpu().numpy(),
        )


def render(
    scene: Scene, drive: Drive, camera: RigCamera, stamp_ns: int, size: tuple[int, int] = (704, 396)
) -> CameraImage:
    """One picture; whoever takes many keeps a `Renderer`, which this builds anew for every other scene."""
    return _renderer(scene).render(drive, camera, stamp_ns, size)


@lru_cache(maxsize=1)
def _renderer(scene: Scene) -> Renderer:
    return Renderer(scene)
