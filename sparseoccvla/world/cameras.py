"""Six cameras arranged, aimed and fired like those of the nuScenes cars."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, CameraCalibration
from sparseoccvla.errors import InputError

NATIVE_SIZE_PX = (1600, 900)
LIDAR_POSITION_M = (0.94, 0.0, 1.84)

# position x, y, z; direction in degrees to the left; focal length at 1600 x 900; firing time in milliseconds
# after the nominal one, which is when the lidar has finished its turn.
_RIG = {
    "cam_front": ((1.70, 0.0, 1.51), 0.0, 1260.0, -35.5),
    "cam_front_right": ((1.55, -0.49, 1.51), -56.0, 1260.0, -27.5),
    "cam_front_left": ((1.52, 0.49, 1.51), 55.5, 1260.0, -43.0),
    "cam_back": ((0.03, 0.0, 1.58), 180.0, 810.0, -10.5),
    "cam_back_left": ((1.04, 0.48, 1.58), 108.5, 1260.0, -0.5),
    "cam_back_right": ((1.02, -0.48, 1.57), -110.5, 1260.0, -20.0),
}


@dataclass(frozen=True)
class RigCamera:
    """One camera: where it is, how it sees, and when it fires."""

    name: str
    base_from_camera: NDArray[np.float64]  # (4, 4), optical frame: z forward, x right, y down
    focal_px: float  # at NATIVE_SIZE_PX
    offset_ns: int  # its stamp minus the nominal time of a set

    def calibration(self, size: tuple[int, int]) -> CameraCalibration:
        """The calibration of pictures of `size` (width, height).

        Pictures are the native ones scaled to the width with the top cut off, as the encoder takes them.

        Raises:
            InputError: higher than the scaled native picture.
        """
        width, height = size
        scale = width / NATIVE_SIZE_PX[0]
        full_height = round(NATIVE_SIZE_PX[1] * scale)
        if width < 8 or not 8 <= height <= full_height:
            raise InputError(
                f"picture size is {width}x{height}, wanted at least 8x8 and at most {full_height} rows "
                "at this width: cameras are 16:9 and only their top is cut off"
            )
        focal = self.focal_px * scale
        center_y = (NATIVE_SIZE_PX[1] / 2 - 0.5) * scale - (full_height - height)
        image_from_camera = np.array(
            [[focal, 0, (NATIVE_SIZE_PX[0] / 2 - 0.5) * scale], [0, focal, center_y], [0, 0, 1]]
        )
        return CameraCalibration(self.name, width, height, image_from_camera, self.base_from_camera)


@dataclass(frozen=True)
class CameraRig:
    """The cameras in the order of `CAMERA_NAMES`."""

    cameras: tuple[RigCamera, ...]

    @classmethod
    def nuscenes_like(cls) -> CameraRig:
        """Round numbers near those of a nuScenes car; one set is fired within 43 ms."""
        cameras = []
        for name in CAMERA_NAMES:
            position, degrees, focal, milliseconds = _RIG[name]
            cameras.append(
                RigCamera(name, looking(position, np.deg2rad(degrees)), focal, round(milliseconds * 1e6))
            )
        return cls(tuple(cameras))

    def __getitem__(self, name: str) -> RigCamera:
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise InputError(
            f"the rig has no camera {name!r}; it has {', '.join(camera.name for camera in self.cameras)}"
        )

    def moved(self, name: str, camera_from_moved: NDArray[np.float64]) -> CameraRig:
        """The same rig with one camera out of place: an extrinsic error nobody was told about."""
        camera = self[name]
        wrong = replace(camera, base_from_camera=camera.base_from_camera @ camera_from_moved)
        return CameraRig(tuple(wrong if other is camera else other for other in self.cameras))


def looking(position_m: tuple[float, float, float], yaw_rad: float) -> NDArray[np.float64]:
    """Pose (4, 4) in base_link of an eye (z forward, x right, y down) that looks along the ground plane."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    )
    matrix[:3, 3] = position_m
    return matrix
