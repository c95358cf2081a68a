"""Camera sets of a scene, with the projection that belongs to each picture.

A set has the CAM_FRONT picture whose stamp is t0 and, of every other camera, the picture nearest in
time. Poses are those of each picture's own stamp, in the scene's odom frame, as in the live stack.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, CameraCalibration
from sparseoccvla.data.scene import Frame, Scene
from sparseoccvla.geometry import inverse

# Half the time between two sweeps; cameras of a set fire within 43 ms.
MAX_SPREAD_S = 0.045


@dataclass(frozen=True)
class CameraViews:
    """One set. Cameras are in the order of CAMERA_NAMES; a missing one has no frame."""

    t0_ns: int
    frames: tuple[Frame | None, ...]
    source_from_odom: NDArray[
        np.float64
    ]  # (N, 4, 4) a homogeneous odom point -> (u*d, v*d, d, 1), file pixels
    odom_from_base: NDArray[np.float64]  # (4, 4) at t0

    @property
    def valid(self) -> NDArray[np.bool_]:
        return np.array([frame is not None for frame in self.frames])


def scene_views(scene: Scene, map_from_odom: NDArray[np.floating], sweeps: bool) -> list[CameraViews]:
    """All sets of a scene in time order: of its keyframes, and with `sweeps` of every picture on disk."""
    odom_from_map = inverse(map_from_odom)
    reference = [
        frame
        for frame in scene.frames[CAMERA_NAMES[0]]
        if frame.is_keyframe or (sweeps and frame.file.exists())
    ]
    stamps = {
        camera: [frame.stamp_ns for frame in scene.frames.get(camera, ())] for camera in CAMERA_NAMES[1:]
    }
    views = []
    for front in reference:
        others = [
            _nearest(scene.frames.get(camera, ()), stamps[camera], front) for camera in CAMERA_NAMES[1:]
        ]
        frames = (front, *others)
        views.append(
            CameraViews(
                front.stamp_ns,
                frames,
                np.stack(
                    [
                        _projection(scene.cameras.get(camera), frame, odom_from_map)
                        for camera, frame in zip(CAMERA_NAMES, frames, strict=True)
                    ]
                ),
                odom_from_map @ front.global_from_base,
            )
        )
    return views


def _nearest(frames: Sequence[Frame], stamps_ns: list[int], front: Frame) -> Frame | None:
    """The picture nearest to the front one; a keyframe goes with keyframes only."""
    place = bisect_left(stamps_ns, front.stamp_ns)
    near = [
        frame
        for frame in frames[max(place - 1, 0) : place + 1]
        if abs(frame.stamp_ns - front.stamp_ns) <= MAX_SPREAD_S * NS_PER_S
        and (frame.is_keyframe or not front.is_keyframe)
        and frame.file.exists()
    ]
    return min(near, key=lambda frame: abs(frame.stamp_ns - front.stamp_ns), default=None)


def _projection(
    camera: CameraCalibration | None, frame: Frame | None, odom_from_map: NDArray[np.floating]
) -> NDArray[np.float64]:
    matrix = np.eye(4)
    if camera is not None and frame is not None:
        odom_from_camera = odom_from_map @ frame.global_from_base @ camera.base_from_camera
        matrix[:3] = camera.image_from_camera @ inverse(odom_from_camera)[:3]
    return matrix
