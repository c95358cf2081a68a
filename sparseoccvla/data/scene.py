"""One scene of a nuScenes data set as a recording: sensors over time, poses, calibration, boxes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, CameraCalibration, Command
from sparseoccvla.data.tables import LIDAR_CHANNEL, DataSetError, Row, Tables, pose_matrix
from sparseoccvla.geometry import PoseTrack

NS_PER_US = 1_000


@dataclass(frozen=True)
class Frame:
    """One recording of one sensor. `stamp_ns` is mid-exposure, or the middle of a lidar turn's end."""

    sensor: str  # "cam_front" ..., "lidar_top"
    stamp_ns: int
    file: Path
    is_keyframe: bool
    global_from_base: NDArray[np.float64]  # (4, 4) at stamp_ns


@dataclass(frozen=True)
class Box:
    """An annotated object, x forward along its length."""

    category: str
    instance: str  # token that stays the same over time
    global_from_box: NDArray[np.float64]  # (4, 4)
    length_width_height_m: tuple[float, float, float]
    lidar_points: int
    visibility: int  # 1 to 4: 0-40, 40-60, 60-80, 80-100 %; 0 unknown


@dataclass(frozen=True)
class Marks:
    """What a generated root says of a keyframe: its route and its hazards."""

    command: Command  # of the route, at t0
    command_source: str
    hazards: tuple[str, ...]  # kinds of those in sight
    # A hazard is in sight, the expert has not acted on it yet, but will within the horizon of a plan.
    needs_sight: bool


@dataclass(frozen=True)
class Keyframe:
    """A sample: one picture of each camera and a lidar turn, with boxes at the lidar's time."""

    token: str
    stamp_ns: int  # of the lidar: boxes and occupancy labels belong to it
    frames: dict[str, Frame]  # by sensor
    boxes: tuple[Box, ...]
    marks: Marks | None = None  # only of generated roots

    @property
    def t0_ns(self) -> int:
        """Stamp of cam_front, the time of every prediction about this keyframe."""
        return self.frames[CAMERA_NAMES[0]].stamp_ns


@dataclass(frozen=True)
class Scene:
    """Everything recorded in one scene.

    `track` has the ego pose of every recording; real data sets give each camera picture its own, so
    that the pose at a picture's stamp is exact. Generated ones say in afterwards.json where ego and boxes
    are after the last keyframe, so that the future of late keyframes is known, too.
    """

    name: str
    description: str
    location: str
    cameras: dict[str, CameraCalibration]
    base_from_lidar: NDArray[np.float64] | None
    keyframes: tuple[Keyframe, ...]
    frames: dict[str, tuple[Frame, ...]]  # by sensor, sweeps included, in time order
    track: PoseTrack  # global_from_base
    boxes_after: tuple[tuple[int, Box], ...] = ()  # by stamp, after the last keyframe

    def pose_of_labels(self, keyframe: Keyframe) -> NDArray[np.float64]:
        """`global_from_base` (4, 4) that boxes and occupancy labels refer to: that of the lidar turn."""
        lidar = keyframe.frames.get(LIDAR_CHANNEL.lower())
        if lidar is not None:
            return lidar.global_from_base
        return self.track.at(keyframe.stamp_ns)[0]


def load_scene(tables: Tables, name: str) -> Scene:
    """Read one scene's rows.

    Raises:
        DataSetError: unknown scene, rows that don't belong together, a keyframe without cam_front, or
            a sensor whose calibration changes within the scene.
    """
    row = tables.scene(name)
    log = tables.get("log", row["log_token"], f"scene {name}")
    samples = tables.samples_of(row)
    frames: dict[str, list[Frame]] = defaultdict(list)
    calibrations: dict[str, tuple[Row, Row]] = {}
    poses: dict[int, NDArray[np.float64]] = {}
    keyframes = []
    for sample in samples:
        of_sample: dict[str, Frame] = {}
        for data in tables.data_of_sample[sample["token"]]:
            channel, calibrated = tables.channel_of(data)
            pose = tables.get("ego_pose", data["ego_pose_token"], f"sample_data {data['token']}")
            global_from_base = pose_matrix(pose)
            poses[int(pose["timestamp"]) * NS_PER_US] = global_from_base
            sensor = channel.lower()
            if sensor not in CAMERA_NAMES and channel != LIDAR_CHANNEL:
                continue
            _remember(calibrations, sensor, calibrated, data, name)
            frame = Frame(
                sensor,
                int(data["timestamp"]) * NS_PER_US,
                tables.dataroot / data["filename"],
                bool(data["is_key_frame"]),
                global_from_base,
            )
            frames[sensor].append(frame)
            if frame.is_keyframe:
                of_sample[sensor] = frame
        if CAMERA_NAMES[0] not in of_sample:
            raise DataSetError(f"sample {sample['token']} of {name} has no picture of {CAMERA_NAMES[0]}")
        keyframes.append(
            Keyframe(
                sample["token"],
                int(sample["timestamp"]) * NS_PER_US,
                of_sample,
                tuple(_box(tables, box) for box in tables.boxes_of_sample.get(sample["token"], ())),
                _marks(tables, sample),
            )
        )
    boxes_after = _afterwards(tables, row, keyframes, poses)
    stamps = sorted(poses)
    lidar = calibrations.get(LIDAR_CHANNEL.lower())
    return Scene(
        name,
        row["description"],
        log["location"],
        {
            camera: _calibration(camera, *calibrations[camera])
            for camera in CAMERA_NAMES
            if camera in calibrations
        },
        None if lidar is None else pose_matrix(lidar[0]),
        tuple(keyframes),
        {sensor: tuple(sorted(found, key=lambda frame: frame.stamp_ns)) for sensor, found in frames.items()},
        PoseTrack(tuple(stamps), tuple(poses[stamp] for stamp in stamps)),
        boxes_after,
    )


def _marks(tables: Tables, sample: Row) -> Marks | None:
    if not tables.has("keyframes"):
        return None
    who = f"sample {sample['token']}"
    row = tables.get("keyframes", sample["token"], who)
    return Marks(
        Command[row["command"]],
        row["command_source"],
        tuple(tables.get("events", token, who)["kind"] for token in row["events"]),
        row["needs_sight"],
    )


def _afterwards(
    tables: Tables, scene: Row, keyframes: list[Keyframe], poses: dict[int, NDArray[np.float64]]
) -> tuple[tuple[int, Box], ...]:
    """Boxes after the last keyframe; adds the ego poses there to `poses`."""
    if not tables.has("afterwards"):
        return ()
    row = tables.get("afterwards", scene["token"], f"scene {scene['name']}")
    poses.update({int(pose["timestamp"]) * NS_PER_US: pose_matrix(pose) for pose in row["ego_poses"]})
    known = {box.instance: box for keyframe in keyframes for box in keyframe.boxes}
    return tuple(
        (
            int(later["timestamp"]) * NS_PER_US,
            replace(known[later["instance_token"]], global_from_box=pose_matrix(later)),
        )
        for later in row["boxes"]
    )


def _remember(
    calibrations: dict[str, tuple[Row, Row]], sensor: str, calibrated: Row, data: Row, scene: str
) -> None:
    known, _ = calibrations.setdefault(sensor, (calibrated, data))
    if known["token"] != calibrated["token"]:
        raise DataSetError(
            f"{sensor} of {scene} has two calibrations, {known['token']} and {calibrated['token']}; "
            "wanted one for each sensor of a scene"
        )


def _calibration(camera: str, calibrated: Row, data: Row) -> CameraCalibration:
    return CameraCalibration(
        camera,
        int(data["width"]),
        int(data["height"]),
        np.asarray(calibrated["camera_intrinsic"], float),
        pose_matrix(calibrated),
    ).validate()


def _box(tables: Tables, row: Row) -> Box:
    who = f"sample_annotation {row['token']}"
    instance = tables.get("instance", row["instance_token"], who)
    category = tables.get("category", instance["category_token"], f"instance {instance['token']}")
    width, length, height = row["size"]
    return Box(
        category["name"],
        row["instance_token"],
        pose_matrix(row),
        (length, width, height),
        int(row["num_lidar_pts"]),
        int(row["visibility_token"] or 0),
    )
