"""Messages of a bag as contracts. Written against attributes, so those of `rosbags` and of rclpy will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    NS_PER_S,
    CameraCalibration,
    CameraState,
    Command,
    ContractError,
    DrivingCommand,
    EncodedImage,
    PlanProposal,
    PlanStatus,
)
from sparseoccvla.data.messages import stamp_ns
from sparseoccvla.geometry import matrix_from_pose


def odometry_sample(message: Any) -> tuple[int, NDArray[np.float64], float, float]:
    """Stamp [ns], odom_from_base (4, 4), forward speed [m/s] and yaw rate [rad/s] of an Odometry."""
    p, q = message.pose.pose.position, message.pose.pose.orientation
    pose = matrix_from_pose((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
    return (
        stamp_ns(message.header.stamp),
        pose,
        float(message.twist.twist.linear.x),
        float(message.twist.twist.angular.z),
    )


def image(camera: str, message: Any) -> EncodedImage:
    """A CompressedImage; the format of rosbag2 recordings may say more than the codec."""
    encoding = "png" if "png" in message.format else "jpeg"
    return EncodedImage(camera, stamp_ns(message.header.stamp), message.data.tobytes(), encoding)


def calibration(camera: str, message: Any, base_from_camera: NDArray[np.float64]) -> CameraCalibration:
    """A CameraInfo of rectified pictures: P belongs to them; drivers that leave it empty rectify to K."""
    projection = np.array(message.p, float).reshape(3, 4)[:, :3]
    intrinsics = projection if projection[0, 0] > 0 else np.array(message.k, float).reshape(3, 3)
    return CameraCalibration(
        camera, int(message.width), int(message.height), intrinsics, base_from_camera
    ).validate()


def transforms(message: Any) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(parent, child): parent_from_child 4x4 of a TFMessage."""
    found = {}
    for stamped in message.transforms:
        t, q = stamped.transform.translation, stamped.transform.rotation
        found[stamped.header.frame_id, stamped.child_frame_id] = matrix_from_pose(
            (t.x, t.y, t.z), (q.x, q.y, q.z, q.w)
        )
    return found


def command(message: Any) -> DrivingCommand:
    """A DrivingCommand.

    Raises:
        ContractError: a number that is no command.
    """
    try:
        value = Command(message.command)
    except ValueError:
        raise ContractError(
            f"command is {message.command}, wanted 0 UNKNOWN, 1 LEFT, 2 RIGHT or 3 STRAIGHT"
        ) from None
    return DrivingCommand(
        stamp_ns(message.header.stamp), value, message.source, stamp_ns(message.valid_until)
    )


def proposal(message: Any) -> PlanProposal:
    """A PlanProposal."""
    candidates = [np.stack([c.x, c.y, c.yaw], axis=-1) for c in message.candidates]
    return PlanProposal(
        stamp_ns(message.header.stamp),
        Command(message.command),
        np.array(candidates, np.float32),
        np.array([c.score for c in message.candidates], np.float32),
        int(message.chosen),
        PlanStatus(message.status),
        stamp_ns(message.reasoning_t0),
        stamp_ns(message.forecast_t0),
        tuple(stamp_ns(stamp) for stamp in message.history),
        float(message.speed),
        float(message.yaw_rate),
        message.stamp_source,
    ).validate()


@dataclass(frozen=True)
class RecordedSet:
    """Which pictures a live encoder took for one set, from the head of its OccupancyQueries."""

    t0_ns: int
    reference_camera: str
    cameras: tuple[tuple[str, CameraState, int], ...]  # name, state, stamp [ns]
    history_ns: tuple[int, ...]
    memory_cleared: bool
    began_ns: int  # bag time at which the set was complete
    stage_id: str


def recorded_set(message: Any, logged_ns: int) -> RecordedSet:
    """The head of an OccupancyQueries that was logged at `logged_ns`."""
    cameras = tuple((c.name, CameraState(c.state), stamp_ns(c.stamp)) for c in message.cameras)
    began_ns = logged_ns - round(message.provenance.execution_s * NS_PER_S)
    return RecordedSet(
        stamp_ns(message.header.stamp),
        message.reference_camera,
        cameras,
        tuple(stamp_ns(stamp) for stamp in message.history),
        bool(message.memory_cleared),
        max(began_ns, *(stamp for _, _, stamp in cameras)),  # not before its own pictures
        message.provenance.stage_id,
    )
