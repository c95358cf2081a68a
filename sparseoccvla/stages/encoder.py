"""The encoder stage: camera sets in, queries and occupancy out.

A camera frame's way: `picture` (decode and fit, on arrival) -> `Synchronizer` -> `process` (poses at
each camera's own stamp, backbone, ring of past features, decoder).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import MemoryConfig, OdometryConfig
from sparseoccvla.contracts import (
    CameraCalibration,
    CameraSet,
    CameraSlot,
    CameraState,
    EncodedImage,
    EncoderInput,
    OccupancyPoints,
    OccupancyQueries,
    SparseOccupancy,
)
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse
from sparseoccvla.images import fit
from sparseoccvla.memory import FeatureMemory
from sparseoccvla.odometry import OdometryBuffer
from sparseoccvla.runtime.base import Encoder, FeatureSet
from sparseoccvla.voxels import ObservedSpace, sparse_occupancy

# What a camera slot carries: a call that yields the fitted picture, or raises what is wrong with it.
Picture = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class EncoderResult:
    """What one camera set became."""

    camera_set: CameraSet  # slots whose picture could not be read are MISSING
    queries: OccupancyQueries
    points: OccupancyPoints
    history_ns: tuple[int, ...]  # newest first, 0 where masked
    memory_cleared: str  # why temporal memory was cleared just before, or ""
    valid: NDArray[np.bool_]  # (N,) cameras that took part
    warnings: tuple[str, ...]


class EncoderStage:
    """Everything the encoder node knows, without ROS.

    Odometry and calibration may come from another thread than the one that calls `process`.

    Args:
        encoder: a backend.
        cameras: names of the rig's cameras, in the order of the encoder's camera axis.
        memory: how past features are kept.
        odometry: how poses are kept.
    """

    def __init__(
        self, encoder: Encoder, cameras: tuple[str, ...], memory: MemoryConfig, odometry: OdometryConfig
    ) -> None:
        if len(cameras) != len(encoder.info.cameras):
            raise InputError(
                f"the rig has {len(cameras)} cameras ({', '.join(cameras)}), the model was made for "
                f"{len(encoder.info.cameras)} ({', '.join(encoder.info.cameras)}); set sync.cameras to match"
            )
        self.encoder = encoder
        self.cameras = cameras
        self.memory: FeatureMemory[FeatureSet] = FeatureMemory(memory, encoder.info.history_frames)
        self.odometry = OdometryBuffer(odometry)
        self._odometry_lock = Lock()
        self._calibrations: dict[str, CameraCalibration] = {}
        self._observed: ObservedSpace | None = None
        self._clear_reason = ""
        self._last_t0_ns = 0

    def add_odometry(
        self, stamp_ns: int, odom_from_base: NDArray[np.float64], speed_mps: float, yaw_rate_radps: float
    ) -> None:
        """Take an odometry sample; a jump that its twist does not allow clears memory."""
        with self._odometry_lock:
            jump = self.odometry.add(stamp_ns, odom_from_base, speed_mps, yaw_rate_radps)
        if jump:
            self.clear(jump)

    def set_calibration(self, calibration: CameraCalibration) -> bool:
        """Take a camera's calibration; another one than before clears memory. True if it was news."""
        before = self._calibrations.get(calibration.name)
        if before is not None and _equal(before, calibration):
            return False
        self._calibrations[calibration.name] = calibration.validate()
        self._observed = None
        if before is not None:
            self.clear(f"calibration of {calibration.name} changed")
        return True

    def calibrated(self, camera: str) -> bool:
        """Whether pictures of a camera can be fitted."""
        return camera in self._calibrations

    def clear(self, reason: str) -> None:
        """Forget past features before the next set."""
        self._clear_reason = self._clear_reason or reason

    def picture(self, image: EncodedImage) -> NDArray[np.uint8]:
        """Decode and fit one picture to the network's size.

        Raises:
            InputError: damaged bytes, no calibration yet, or a size the calibration does not have.
        """
        calibration = self._calibrations.get(image.camera)
        if calibration is None:
            raise InputError(
                f"{image.camera} sent a picture but no calibration has come; publish its camera_info "
                "and the transform from its frame to base_link"
            )
        size = (calibration.height_px, calibration.width_px)
        return fit(size, self.encoder.info.image_size_px).load(image)

    def process(self, camera_set: CameraSet) -> EncoderResult:
        """Run the network on one set.

        Raises:
            PoseError: odometry does not cover the set.
            InputError: no readable picture.
        """
        images, slots, warnings = self._pictures(camera_set)
        inputs = self._inputs(camera_set.t0_ns, images, slots)
        if camera_set.after_reset:
            self.clear("time jump or long gap in the camera stamps")
        # Also when the set that said so was displaced by a newer one.
        elif camera_set.t0_ns <= self._last_t0_ns:
            self.clear("camera time went back")
        cleared, self._clear_reason = self._clear_reason, ""
        if cleared:
            self.memory.clear(cleared)
        self._last_t0_ns = camera_set.t0_ns
        self.memory.add(camera_set.t0_ns, self.encoder.extract(inputs))
        frames = self.memory.select(camera_set.t0_ns)
        output = self.encoder.decode(frames)
        return EncoderResult(
            replace(camera_set, slots=slots),
            output.queries.validate(),
            output.points,
            tuple(frame.t0_ns if frame is not None else 0 for frame in frames[1:]),
            cleared,
            inputs.valid,
            warnings,
        )

    def occupancy(self, result: EncoderResult) -> SparseOccupancy:
        """Voxels of a result and what its cameras could see; for people and other stacks."""
        if self._observed is None:
            self._observed = self._observed_space()
        return sparse_occupancy(
            result.queries.t0_ns, result.points, self.encoder.voxel_rule, self._observed, result.valid
        )

    def _observed_space(self) -> ObservedSpace:
        image_from_base = np.tile(np.eye(4), (len(self.cameras), 1, 1))
        for i, name in enumerate(self.cameras):
            # A camera without calibration has never been valid, so its rows are not read.
            if name in self._calibrations:
                camera = self._calibrations[name]
                image_from_base[i, :3] = (
                    self._image_from_camera(camera) @ inverse(camera.base_from_camera)[:3]
                )
        return ObservedSpace(image_from_base, self.encoder.info.image_size_px)

    def _image_from_camera(self, camera: CameraCalibration) -> NDArray[np.float64]:
        """(3, 3) camera points to pixels of the network's picture."""
        size_px = (camera.height_px, camera.width_px)
        return fit(size_px, self.encoder.info.image_size_px).matrix @ camera.image_from_camera

    def _pictures(
        self, camera_set: CameraSet
    ) -> tuple[dict[str, NDArray[np.uint8]], tuple[CameraSlot, ...], tuple[str, ...]]:
        """Readable pictures by camera; a picture that can't be read makes its camera MISSING."""
        images, slots, warnings = {}, [], []
        for slot in camera_set.slots:
            if slot.payload is not None:
                try:
                    images[slot.name] = slot.payload()
                except InputError as error:
                    warnings.append(str(error))
                    slot = CameraSlot(slot.name, CameraState.MISSING, 0)
            slots.append(slot)
        if not images:
            raise InputError(
                f"set at {camera_set.t0_ns} ns has no readable picture: {'; '.join(warnings) or 'no camera'}"
            )
        return images, tuple(slots), tuple(warnings)

    def _inputs(
        self, t0_ns: int, images: dict[str, NDArray[np.uint8]], slots: tuple[CameraSlot, ...]
    ) -> EncoderInput:
        height, width = self.encoder.info.image_size_px
        count = len(self.cameras)
        stack = np.zeros((count, height, width, 3), np.uint8)
        image_from_odom = np.tile(np.eye(4), (count, 1, 1))
        valid = np.zeros(count, bool)
        for i, slot in enumerate(slots):
            camera = self._calibrations.get(slot.name)
            blank = slot.state is CameraState.BLANK and camera is not None
            if camera is None or not (blank or slot.name in images):
                continue
            odom_from_camera = self._pose(slot.stamp_ns or t0_ns) @ camera.base_from_camera
            image_from_odom[i, :3] = self._image_from_camera(camera) @ inverse(odom_from_camera)[:3]
            valid[i] = True
            if not blank:
                stack[i] = images[slot.name]
        return EncoderInput(t0_ns, stack, image_from_odom, self._pose(t0_ns), valid)

    def _pose(self, stamp_ns: int) -> NDArray[np.float64]:
        with self._odometry_lock:
            return self.odometry.pose(stamp_ns)


def _equal(a: CameraCalibration, b: CameraCalibration) -> bool:
    return (
        (a.width_px, a.height_px) == (b.width_px, b.height_px)
        and np.array_equal(a.image_from_camera, b.image_from_camera)
        and np.allclose(a.base_from_camera, b.base_from_camera, atol=1e-6)
    )
