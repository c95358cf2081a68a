"""What one scene adds to the tables of a data set."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S
from sparseoccvla.data.scene import NS_PER_US
from sparseoccvla.data.tables import LIDAR_CHANNEL
from sparseoccvla.world.cameras import CameraRig
from sparseoccvla.world.drive import Box, Drive, Event
from sparseoccvla.world.ground import MARGIN_M
from sparseoccvla.world.lidar import BASE_FROM_LIDAR
from sparseoccvla.world.roots import RootOptions, SceneSpec
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.writer_tables import (
    EXTRA_TABLES,
    TABLES,
    Row,
    Rows,
    attributes_of,
    chained,
    instance_rows,
    placed,
    token,
)

MAP_EDGE_M = 20.0  # of map around the roads
BOX_RANGE_M = 75.0
AFTER_S = NUM_STEPS * STEP_S  # the future of the last keyframe
_AFTER_POSES_HZ = 10
_DATE = "2023-11-14"  # that of `drive.START_NS`


@dataclass(frozen=True)
class Part:
    """What a scene adds to the root's tables."""

    tables: Rows
    occ3d: dict[str, Any]  # its entries of Occ3D's annotations.json, by sample token

    def as_json(self) -> bytes:
        return json.dumps({"tables": self.tables, "occ3d": self.occ3d}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Sighting:
    """A box with what is seen of it."""

    box: Box
    visibility: str  # token
    lidar_points: int


class SceneRows:
    """Collects the rows of a scene; `part` links and returns them.

    The global frame is that of the scene's map: its lower left corner is (0, 0), as the devkit wants it.
    """

    def __init__(
        self, spec: SceneSpec, options: RootOptions, scene: Scene, drive: Drive, stamps_ns: list[int]
    ) -> None:
        """`stamps_ns` are the times of the keyframes."""
        self.log = f"w{spec.name[-4:]}-{spec.city}"
        self.map_file = f"maps/{self.log}.png"
        self.global_from_world = np.eye(4)
        self.global_from_world[:2, 3] = MAP_EDGE_M - MARGIN_M - np.array(scene.ground.origin_m)
        self._spec, self._options, self._drive = spec, options, drive
        self._stamps_ns = stamps_ns
        self._standing = {thing.name for thing in scene.standing}
        self._annotated: dict[str, Box] = {}  # by instance token
        self._rows: Rows = defaultdict(list)
        self._add_scene(scene)
        self._add_sensors()

    def sample_token(self, index: int) -> str:
        """Token of keyframe `index`."""
        return self._token("sample", index)

    def near(self, stamp_ns: int) -> list[Box]:
        """The boxes that are annotated at a time."""
        ego_m = self._drive.world_from_base(stamp_ns)[:3, 3]
        return [
            box
            for box in self._drive.boxes_at(stamp_ns)
            if np.linalg.norm(box.center_m - ego_m) < BOX_RANGE_M
        ]

    def add_sample(self, index: int, t0_ns: int) -> None:
        """Keyframe `index`, whose cam_front fires at `t0_ns`."""
        self._rows["sample"].append(
            {
                "token": self.sample_token(index),
                "timestamp": self._stamps_ns[index] // NS_PER_US,
                "scene_token": self._token("scene"),
            }
        )
        events = self._drive.events
        self._rows["keyframes"].append(
            {
                "token": self.sample_token(index),
                "command": self._drive.command_at(t0_ns).name,
                "command_source": "route",
                "events": [self._token("event", event.name) for event in events if _in_sight(event, t0_ns)],
                "needs_sight": any(event.needs_sight(t0_ns) for event in events),
            }
        )

    def add_data(self, channel: str, index: int, stamp_ns: int, folder: str, suffix: str) -> Row:
        """A recording that belongs to keyframe `index`, with an ego pose of its own."""
        stamp_us = stamp_ns // NS_PER_US
        name = self._token("data", channel, stamp_us)
        width, height = (0, 0) if channel == LIDAR_CHANNEL else self._options.size_px
        self._rows["ego_pose"].append({"token": name, **self._ego_pose(stamp_us)})
        row = {
            "token": name,
            "sample_token": self.sample_token(index),
            "ego_pose_token": name,
            "calibrated_sensor_token": self._token("calibrated_sensor", channel),
            "timestamp": stamp_us,
            "fileformat": suffix.split(".")[0],
            "is_key_frame": folder == "samples",
            "height": height,
            "width": width,
            "filename": f"{folder}/{channel}/{self.log}__{channel}__{stamp_us}.{suffix}",
        }
        self._rows["sample_data"].append(row)
        return row

    def add_boxes(self, index: int, seen: Iterable[Sighting]) -> None:
        """Annotations of keyframe `index`."""
        for sighting in seen:
            box = sighting.box
            instance = self._token("instance", box.name)
            self._annotated[instance] = box
            self._rows["sample_annotation"].append(
                {
                    "token": self._token("annotation", box.name, index),
                    "sample_token": self.sample_token(index),
                    "instance_token": instance,
                    "visibility_token": sighting.visibility,
                    "attribute_tokens": attributes_of(box.category, box.moving, box.name in self._standing),
                    **placed(self.global_from_world @ box.world_from_box),
                    "size": [round(side, 4) for side in box.size_m],
                    "num_lidar_pts": sighting.lidar_points,
                    "num_radar_pts": 0,
                }
            )

    def part(self) -> Part:
        """All rows, linked."""
        rows = self._rows
        chained(rows["sample"])
        tracks: dict[str, list[Row]] = defaultdict(list)
        for row in rows["sample_data"]:
            tracks[row["calibrated_sensor_token"]].append(row)
        for track in tracks.values():
            chained(sorted(track, key=lambda row: row["timestamp"]))
        rows["instance"] = instance_rows(rows["sample_annotation"], self._annotated)
        rows["events"] = [self._event(event) for event in self._drive.events]
        rows["afterwards"] = [self._afterwards()]
        return Part({name: rows[name] for name in (*TABLES, *EXTRA_TABLES)}, self._occ3d())

    def _token(self, *parts: str | int) -> str:
        return token(self._spec.city, self._spec.world_seed, *parts)

    def _ego_pose(self, stamp_us: int) -> Row:
        pose = self.global_from_world @ self._drive.world_from_base(stamp_us * NS_PER_US)
        return {"timestamp": stamp_us, **placed(pose)}

    def _add_scene(self, scene: Scene) -> None:
        hazards = ", ".join(hazard.kind for hazard in scene.hazards) or "no hazard"
        self._rows["log"].append(
            {
                "token": self._token("log"),
                "logfile": self.log,
                "vehicle": "world",
                "date_captured": _DATE,
                "location": self._spec.city,
            }
        )
        self._rows["map"].append(
            {
                "token": self._token("map"),
                "log_tokens": [self._token("log")],
                "category": "semantic_prior",
                "filename": self.map_file,
            }
        )
        self._rows["scene"].append(
            {
                "token": self._token("scene"),
                "name": self._spec.name,
                "description": f"{self._spec.city}, {scene.sky.weather}, {scene.sky.hour}, route "
                f"{scene.route_command.name.lower()}, {hazards}, world seed {self._spec.world_seed}",
                "log_token": self._token("log"),
                "nbr_samples": len(self._stamps_ns),
                "first_sample_token": self.sample_token(0),
                "last_sample_token": self.sample_token(len(self._stamps_ns) - 1),
            }
        )

    def _add_sensors(self) -> None:
        for camera in CameraRig.nuscenes_like().cameras:
            intrinsic = camera.calibration(self._options.size_px).image_from_camera
            self._add_sensor(camera.name.upper(), camera.base_from_camera, np.round(intrinsic, 6).tolist())
        self._add_sensor(LIDAR_CHANNEL, BASE_FROM_LIDAR, [])

    def _add_sensor(
        self, channel: str, base_from_sensor: NDArray[np.float64], intrinsic: list[list[float]]
    ) -> None:
        self._rows["calibrated_sensor"].append(
            {
                "token": self._token("calibrated_sensor", channel),
                "sensor_token": token("sensor", channel),
                **placed(base_from_sensor),
                "camera_intrinsic": intrinsic,
            }
        )

    def _event(self, event: Event) -> Row:
        stamps = {
            "onset": event.onset_ns,
            "visible": event.visible_ns,
            "react": event.react_ns,
            "end": event.end_ns,
        }
        return {
            "token": self._token("event", event.name),
            "scene_token": self._token("scene"),
            "name": event.name,
            "kind": event.kind,
            "instance_token": self._token("instance", event.thing),
            **{name: stamp_ns // NS_PER_US for name, stamp_ns in stamps.items()},
        }

    def _afterwards(self) -> Row:
        """What ego and boxes do after the last keyframe, so that its future is known, too."""
        last_ns = self._stamps_ns[-1]
        boxes = []
        for step in range(1, NUM_STEPS + 1):
            stamp_ns = last_ns + round(step * STEP_S * NS_PER_S)
            boxes += [
                {
                    "timestamp": stamp_ns // NS_PER_US,
                    "instance_token": instance,
                    **placed(self.global_from_world @ box.world_from_box),
                }
                for box in self.near(stamp_ns)
                if (instance := self._token("instance", box.name)) in self._annotated
            ]
        period_us = 1_000_000 // _AFTER_POSES_HZ
        return {
            "token": self._token("scene"),
            "ego_poses": [
                self._ego_pose(last_ns // NS_PER_US + step * period_us)
                for step in range(1, round(AFTER_S * _AFTER_POSES_HZ) + 1)
            ],
            "boxes": boxes,
        }

    def _occ3d(self) -> dict[str, Any]:
        poses = {row["token"]: _pose_of(row) for row in self._rows["ego_pose"]}
        calibrated = {row["token"]: row for row in self._rows["calibrated_sensor"]}
        entries: dict[str, Any] = {
            row["token"]: {
                "timestamp": row["timestamp"],
                "camera_sensor": {},
                "ego_pose": {},
                "gt_path": f"gts/{self._spec.name}/{row['token']}/labels.npz",
                "prev": row["prev"],
                "next": row["next"],
            }
            for row in self._rows["sample"]
        }
        for row in self._rows["sample_data"]:
            entry, sensor = entries[row["sample_token"]], calibrated[row["calibrated_sensor_token"]]
            if not sensor["camera_intrinsic"]:
                entry["ego_pose"] = poses[row["ego_pose_token"]]
            elif row["is_key_frame"]:
                entry["camera_sensor"][row["token"]] = {
                    "img_path": row["filename"],
                    "intrinsic": sensor["camera_intrinsic"],
                    "extrinsic": _pose_of(sensor),
                    "ego_pose": poses[row["ego_pose_token"]],
                }
        return entries


def _pose_of(row: Row) -> Row:
    return {"translation": row["translation"], "rotation": row["rotation"]}


def _in_sight(event: Event, t0_ns: int) -> bool:
    return 0 < event.visible_ns <= t0_ns and (t0_ns <= event.end_ns or event.end_ns == 0)
