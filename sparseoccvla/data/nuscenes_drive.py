"""A nuScenes scene as a drive: what `sparseoccvla bag from-nuscenes` writes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseoccvla.contracts import NS_PER_S, DrivingCommand, EncodedImage
from sparseoccvla.data.can_bus import read_motion
from sparseoccvla.data.commands import FUTURE_TRAJECTORY, command_from_future
from sparseoccvla.data.drive import Cloud, Drive, GroundTruth
from sparseoccvla.data.future import future_poses
from sparseoccvla.data.motion import scene_odometry
from sparseoccvla.data.scene import Frame, Scene, load_scene
from sparseoccvla.data.tables import LIDAR_CHANNEL, DataSetError, Tables
from sparseoccvla.images import ImageError, size_px

COMMAND_VALID_S = 2.0  # four keyframes: a bag that ends must not command for ever
_ENCODINGS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


@dataclass(frozen=True)
class SceneDrive:
    """A drive, with what a summary tells."""

    drive: Drive
    pictures: int
    missing_sweeps: int  # rows of the tables whose picture is not on disk
    clouds: int
    bytes: int  # of the files that go into the bag


def scene_drive(tables: Tables, name: str) -> SceneDrive:
    """Every picture and lidar turn of a scene that is on disk: 12 Hz with sweeps/, else the keyframes.

    Commands follow OmniDrive's rule, from the future trajectory; ground truth is given per keyframe.

    Raises:
        DataSetError: unknown scene, tables that don't fit, or a keyframe picture that is missing.
    """
    scene = load_scene(tables, name)
    frames = [frame for camera in scene.cameras for frame in scene.frames[camera]]
    present = [frame for frame in frames if _is_there(frame)]
    turns = [frame for frame in scene.frames.get(LIDAR_CHANNEL.lower(), ()) if frame.file.exists()]
    odometry = scene_odometry(scene.track, read_motion(tables.dataroot, name))
    notes = {
        "origin": f"nuScenes {tables.version} {name}",
        "location": scene.location,
        "description": scene.description,
        "twist": odometry.twist_source,
        "command": f"{FUTURE_TRAJECTORY}: the side of the last waypoint within 3 s, not a route",
    }
    drive = Drive(
        notes=notes,
        start_ns=min(scene.track.stamps_ns[0], *(frame.stamp_ns for frame in frames)),
        cameras=scene.cameras,
        base_from_lidar=scene.base_from_lidar,
        odometry=odometry,
        commands=list(_commands(scene)),
        pictures=_pictures(scene, present),
        clouds=(Cloud(turn.stamp_ns, turn.file.read_bytes()) for turn in turns),
        ground_truth=[_ground_truth(scene, index) for index in range(len(scene.keyframes))],
    )
    size = sum(frame.file.stat().st_size for frame in (*present, *turns))
    return SceneDrive(drive, len(present), len(frames) - len(present), len(turns), size)


def _is_there(frame: Frame) -> bool:
    if frame.file.exists():
        return True
    if frame.is_keyframe:
        raise DataSetError(
            f"picture {frame.file} of a keyframe is missing; unpack the data set's samples/ completely"
        )
    return False


def _pictures(scene: Scene, present: list[Frame]) -> Iterator[EncodedImage]:
    for frame in heapq.merge(
        *([frame for frame in present if frame.sensor == camera] for camera in scene.cameras),
        key=lambda frame: frame.stamp_ns,
    ):
        camera = scene.cameras[frame.sensor]
        picture = EncodedImage(frame.sensor, frame.stamp_ns, _read(frame.file), _encoding(frame.file))
        size = size_px(picture)
        if size != (camera.height_px, camera.width_px):
            raise ImageError(
                picture,
                f"{frame.file} is {size[1]}x{size[0]} px, the tables say "
                f"{camera.width_px}x{camera.height_px}",
            )
        yield picture


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataSetError(f"can't read {file}: {error.strerror}") from error


def _encoding(file: Path) -> str:
    try:
        return _ENCODINGS[file.suffix]
    except KeyError as error:
        raise DataSetError(f"picture {file} is neither .jpg nor .png") from error


def _commands(scene: Scene) -> Iterator[DrivingCommand]:
    for keyframe in scene.keyframes:
        waypoints, valid = future_poses(scene.track, keyframe.t0_ns)
        yield DrivingCommand(
            keyframe.t0_ns,
            command_from_future(waypoints, valid),
            FUTURE_TRAJECTORY,
            keyframe.t0_ns + round(COMMAND_VALID_S * NS_PER_S),
        )


def _ground_truth(scene: Scene, index: int) -> GroundTruth:
    keyframe = scene.keyframes[index]
    waypoints, valid = future_poses(scene.track, keyframe.t0_ns)
    return GroundTruth(keyframe.t0_ns, waypoints[valid], keyframe.stamp_ns, keyframe.boxes)
