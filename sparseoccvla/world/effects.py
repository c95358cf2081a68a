"""What real cameras do to pictures and what people get wrong about them. All off by default.

Blur, noise and rolling shutter change what is seen. Errors of mounting and stamps change what is known: the
calibration and the stamp that come with a picture stay those of a perfect rig. Every draw has its own stream
of the seed, so that a picture does not depend on which others are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from sparseoccvla.config import Checked, setting
from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.errors import InputError
from sparseoccvla.world.cameras import CameraRig, RigCamera
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.render import CameraImage, Renderer, lens_of
from sparseoccvla.world.seeds import stream

_BANDS = 12  # a rolling shutter's picture is taken in this many parts


@dataclass(frozen=True)
class CameraEffects(Checked):
    """How far cameras are from perfect."""

    blur_px: float = setting(0.0, "Standard deviation of the optics' blur.", unit="px", low=0.0, high=10.0)
    noise: float = setting(
        0.0, "Standard deviation of the sensor's noise in each color, of 255.", low=0.0, high=64.0
    )
    rolling_shutter_s: float = setting(
        0.0, "From the exposure of the first row to that of the last.", unit="s", low=0.0, high=0.1
    )
    dropped: float = setting(0.0, "Share of pictures that never arrive.", low=0.0, high=1.0)
    rotation_error_deg: float = setting(
        0.0,
        "Standard deviation of each camera's mounting error about each axis.",
        unit="deg",
        low=0.0,
        high=10.0,
    )
    position_error_m: float = setting(
        0.0,
        "Standard deviation of each camera's mounting error along each axis.",
        unit="m",
        low=0.0,
        high=0.5,
    )
    stamp_error_s: float = setting(
        0.0, "Standard deviation of each stamp from the true mid-exposure.", unit="s", low=0.0, high=0.1
    )

    @classmethod
    def parse(cls, texts: Iterable[str]) -> CameraEffects:
        """Effects written as name=value, e.g. ``noise=4``.

        Raises:
            InputError: no such effect, no number, or one out of range.
        """
        names = [item.name for item in fields(cls)]
        values = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in names:
                raise InputError(f"effect is {text!r}, wanted NAME=VALUE with a name of {', '.join(names)}")
            try:
                values[name] = float(value)
            except ValueError as error:
                raise InputError(f"effect is {text!r}, wanted a number after {name}=") from error
        return cls(**values)


class Cameras:
    """A rig with effects, looking at one scene.

    Args:
        renderer: of the scene.
        effects: none by default; then pictures are the renderer's, bit for bit.
        rig: as its calibration says; where cameras really are is drawn from the scene's seed.
    """

    def __init__(
        self, renderer: Renderer, effects: CameraEffects | None = None, rig: CameraRig | None = None
    ) -> None:
        self.effects = effects or CameraEffects()
        self.rig = rig or CameraRig.nuscenes_like()
        self._renderer = renderer
        self._seed = renderer.scene.seed
        self.mounted = CameraRig(tuple(self._mounted(camera) for camera in self.rig.cameras))  # in truth

    def picture(self, drive: Drive, name: str, stamp_ns: int, size: tuple[int, int]) -> CameraImage | None:
        """What arrives with this stamp, in pixels of `size` (width, height); None if nothing does.

        Classes, depth and instances are those of the pixels as they were exposed.
        """
        effects, camera = self.effects, self.mounted[name]
        draws = stream(self._seed, "effects", name, stamp_ns)
        arrives, late_s = draws.random() >= effects.dropped, draws.normal() * effects.stamp_error_s
        if not arrives:
            return None
        image = self._exposed(drive, camera, stamp_ns + round(late_s * NS_PER_S), size)
        rgb = image.rgb
        if effects.blur_px > 0:
            blurred = cv2.GaussianBlur(rgb, (0, 0), effects.blur_px, borderType=cv2.BORDER_REPLICATE)
            rgb = np.asarray(blurred, np.uint8)
        if effects.noise > 0:
            noisy = rgb + effects.noise * draws.standard_normal(rgb.shape, np.float32)
            rgb = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return replace(image, stamp_ns=stamp_ns, rgb=rgb)

    def _mounted(self, camera: RigCamera) -> RigCamera:
        """The camera where it really is."""
        draws = stream(self._seed, "mounting", camera.name)
        moved = np.eye(4)
        turn = draws.normal(size=3) * self.effects.rotation_error_deg
        moved[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
        moved[:3, 3] = draws.normal(size=3) * self.effects.position_error_m
        return replace(camera, base_from_camera=camera.base_from_camera @ moved)

    def _exposed(self, drive: Drive, camera: RigCamera, stamp_ns: int, size: tuple[int, int]) -> CameraImage:
        """The picture in bands of rows, each at its own time around the mid-exposure."""
        if self.effects.rolling_shutter_s == 0:
            return self._renderer.render(drive, camera, stamp_ns, size)
        lens = lens_of(camera.calibration(size))
        edges = np.linspace(0, lens.height_px, _BANDS + 1).round().astype(int).tolist()
        bands = []
        for first, end in pairwise(edges):
            late_s = ((first + end) / 2 / lens.height_px - 0.5) * self.effects.rolling_shutter_s
            band = replace(lens, cy=lens.cy - first, height_px=end - first)
            bands.append(self._renderer.through(band, drive, camera, stamp_ns + round(late_s * NS_PER_S)))
        return CameraImage(
            camera.name,
            stamp_ns,
            *(
                np.concatenate([getattr(band, name) for band in bands])
                for name in ("rgb", "class_ids", "depth_m", "instance_ids")
            ),
        )
