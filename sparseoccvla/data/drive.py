"""A drive, recorded or synthetic, as the topics of a bag. The two kinds of bag can't drift apart.

All streams are lazy and merged by stamp, so that a long drive never lies in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    NS_PER_S,
    STEP_S,
    CameraCalibration,
    DrivingCommand,
    EncodedImage,
)
from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagWriter
from sparseoccvla.data.categories import class_of_category
from sparseoccvla.data.motion import Odometry
from sparseoccvla.data.scene import Box
from sparseoccvla.geometry import planar_matrix
from sparseoccvla.palette import CLASS_COLORS_RGB

BOX_LIFETIME_S = 0.6  # a little longer than the time between two keyframes
LIDAR_COLUMNS = ("x", "y", "z", "intensity", "ring")


@dataclass(frozen=True)
class Cloud:
    """One lidar turn, packed float32 columns as nuScenes stores them."""

    stamp_ns: int
    data: bytes


@dataclass(frozen=True)
class GroundTruth:
    """What really was at a keyframe: for people and metrics, no part of the stack's input."""

    t0_ns: int
    future: NDArray[np.float64]  # (steps, 3) x y yaw in base_link at t0, every 0.5 s, only known ones
    boxes_ns: int
    boxes: tuple[Box, ...]  # in the map frame


@dataclass(frozen=True)
class Drive:
    """Each stream is in time order; `notes` say where all this comes from."""

    notes: Mapping[str, str]
    start_ns: int  # not after anything below; the stamp of /tf_static
    cameras: Mapping[str, CameraCalibration]
    base_from_lidar: NDArray[np.float64] | None
    odometry: Odometry
    commands: Iterable[DrivingCommand]
    pictures: Iterable[EncodedImage]
    clouds: Iterable[Cloud]
    ground_truth: Sequence[GroundTruth]


class _Record(NamedTuple):
    stamp_ns: int
    topic: str
    message: Any


def write_drive(
    drive: Drive, out: Path, needed_bytes: int = 0, progress: Callable[[EncodedImage], None] = lambda _: None
) -> None:
    """Write a drive as a rosbag2 bag (MCAP, CDR); log time is the stamp, and rises.

    What a picture needs (transforms, odometry, command, calibration) comes before it at equal stamps.
    Ground truth paths are in base_link at t0, ground truth boxes in map.

    Args:
        drive: its streams are read once.
        out: new, or a bag written here before.
        needed_bytes: refused at once if the disk has less room.
        progress: called with each picture as it is written.

    Raises:
        OutputError: `out` is foreign, or there is no room.
    """
    streams = (
        _static(drive),
        _odometry(drive.odometry),
        (_Record(c.stamp_ns, "/command", messages.driving_command(c)) for c in drive.commands),
        _pictures(drive, progress),
        _clouds(drive.clouds),
        _paths(drive.ground_truth),
        _boxes(drive.ground_truth),
    )
    with BagWriter(out, drive.notes, needed_bytes) as bag:
        for record in heapq.merge(*streams, key=lambda record: record.stamp_ns):
            bag.write(record.topic, record.stamp_ns, record.message)


def _static(drive: Drive) -> Iterator[_Record]:
    stamp_ns = drive.start_ns
    entries = [
        (stamp_ns, messages.BASE_FRAME, camera.name, camera.base_from_camera)
        for camera in drive.cameras.values()
    ]
    if drive.base_from_lidar is not None:
        entries.append((stamp_ns, messages.BASE_FRAME, messages.LIDAR_FRAME, drive.base_from_lidar))
    yield _Record(stamp_ns, "/tf_static", messages.transforms(entries))


def _odometry(odometry: Odometry) -> Iterator[_Record]:
    for sample in odometry.samples:
        stamp = sample.stamp_ns
        yield _Record(
            stamp,
            "/tf",
            messages.transforms(
                [
                    (stamp, messages.MAP_FRAME, messages.ODOM_FRAME, odometry.map_from_odom),
                    (stamp, messages.ODOM_FRAME, messages.BASE_FRAME, sample.odom_from_base),
                ]
            ),
        )
        linear, angular = np.zeros(3), np.zeros(3)
        linear[0], angular[2] = sample.speed_mps, sample.yaw_rate_radps
        yield _Record(stamp, "/odom", messages.odometry(stamp, sample.odom_from_base, linear, angular))


def _pictures(drive: Drive, progress: Callable[[EncodedImage], None]) -> Iterator[_Record]:
    for picture in drive.pictures:
        stamp, camera = picture.stamp_ns, picture.camera
        image_topic, info_topic = messages.camera_topics(camera)
        yield _Record(stamp, info_topic, messages.camera_info(stamp, drive.cameras[camera]))
        image = messages.compressed_image(stamp, camera, bytes(picture.data), picture.encoding)
        yield _Record(stamp, image_topic, image)
        progress(picture)


def _clouds(clouds: Iterable[Cloud]) -> Iterator[_Record]:
    for cloud in clouds:
        message = messages.point_cloud(cloud.stamp_ns, messages.LIDAR_FRAME, LIDAR_COLUMNS, cloud.data)
        yield _Record(cloud.stamp_ns, "/lidar_top", message)


def _paths(moments: Sequence[GroundTruth]) -> Iterator[_Record]:
    for moment in moments:
        if len(moment.future):
            poses = [
                (moment.t0_ns + round((step + 1) * STEP_S * NS_PER_S), planar_matrix(*pose))
                for step, pose in enumerate(moment.future)
            ]
            path = messages.path(moment.t0_ns, messages.BASE_FRAME, poses)
            yield _Record(moment.t0_ns, "/ground_truth/trajectory", path)


def _boxes(moments: Sequence[GroundTruth]) -> Iterator[_Record]:
    for moment in moments:
        cubes = [
            messages.cube(
                moment.boxes_ns,
                messages.MAP_FRAME,
                number,
                box.category,
                box.global_from_box,
                box.length_width_height_m,
                CLASS_COLORS_RGB[class_of_category(box.category)],
                BOX_LIFETIME_S,
            )
            for number, box in enumerate(moment.boxes)
        ]
        boxes = messages.markers(moment.boxes_ns, messages.MAP_FRAME, cubes)
        yield _Record(moment.boxes_ns, "/ground_truth/boxes", boxes)
