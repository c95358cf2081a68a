"""One scene of a generated data set: its files, and its rows for the tables.

    samples/CAM_*/, sweeps/CAM_*/     JPEG pictures; samples/LIDAR_TOP/ float32 x, y, z, intensity, ring
    semantics/CAM_*/, depth/CAM_*/    PNG of every n-th pixel of a keyframe's picture, see `write_pixels`
    can_bus/, maps/, gts/             as in nuScenes, its CAN bus expansion, Occ3D
    desc/, conv/, vqa/, keywords/     as in OmniDrive

A keyframe's time is the lidar's. Its boxes and its occupancy label belong to that time and to base_link then;
each camera fires at its own offset before it, and has its own ego pose.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, NUM_STEPS, STEP_S
from sparseoccvla.data.occ3d import label_file
from sparseoccvla.data.scene import AFTER_STEP_S
from sparseoccvla.data.tables import LIDAR_CHANNEL
from sparseoccvla.geometry import planar_matrix
from sparseoccvla.world.cameras import LIDAR_POSITION_M, CameraRig, RigCamera
from sparseoccvla.world.drive import START_NS, Box, Event
from sparseoccvla.world.ground import CELL_M, MARGIN_M, Channel
from sparseoccvla.world.labels import Labeler
from sparseoccvla.world.render import CameraImage, Renderer
from sparseoccvla.world.rollout import rollout
from sparseoccvla.world.roots import RootOptions, SceneSpec
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.writer_can import write_can
from sparseoccvla.world.writer_tables import (
    EXTRA_TABLES,
    NS_PER_US,
    TABLES,
    Row,
    Rows,
    attributes_of,
    chained,
    instance_rows,
    placed,
    token,
)

FIRST_KEYFRAME_S = 0.5  # the first keyframes have a little past
SWEEPS_PER_KEYFRAME = 6  # 12 Hz, the keyframe among them
BOX_RANGE_M = 75.0
JPEG_QUALITY = 90
MAP_CELL_M = 0.1
MAP_EDGE_M = 20.0  # of map around the roads
DEPTH_UNIT_M = 0.01
AFTER_S = NUM_STEPS * STEP_S  # the future of the last keyframe
_DATE = "2023-11-14"  # that of `START_NS`


@dataclass(frozen=True)
class Part:
    """What a scene adds to the root's tables."""

    tables: Rows
    occ3d: dict[str, Any]  # its entries of Occ3D's annotations.json, by sample token

    def as_json(self) -> bytes:
        return json.dumps({"tables": self.tables, "occ3d": self.occ3d}, separators=(",", ":")).encode()


def write_scene(root: Path, spec: SceneSpec, options: RootOptions) -> Part:
    """Write the files of a scene and return its rows. Equal arguments give equal bytes."""
    return _SceneWriter(root, spec, options).write()


class _SceneWriter:
    def __init__(self, root: Path, spec: SceneSpec, options: RootOptions) -> None:
        self.root, self.spec, self.options = root, spec, options
        self.scene = Scene.make(spec.world_seed, spec.city)
        start_ns = START_NS + int(spec.name[-4:]) * 60 * NS_PER_S  # no two scenes at one time
        keyframes = round(options.duration_s / STEP_S)
        self.stamps_ns = [
            start_ns + round((FIRST_KEYFRAME_S + k * STEP_S) * NS_PER_S) for k in range(keyframes)
        ]
        seconds = FIRST_KEYFRAME_S + (keyframes - 1) * STEP_S + AFTER_S + 0.1
        self.drive = rollout(self.scene, seconds, start_ns)
        self.rig = CameraRig.nuscenes_like()
        self.renderer = Renderer(self.scene)
        self.labeler = Labeler(self.scene, self.rig)
        self.log = f"w{spec.name[-4:]}-{spec.city}"
        self.global_from_world = np.eye(4)
        self.global_from_world[:2, 3] = MAP_EDGE_M - MARGIN_M - np.array(self.scene.ground.origin_m)
        self.rows: Rows = defaultdict(list)
        self.occ3d: dict[str, Any] = {}
        self._standing = {thing.name for thing in self.scene.standing}
        self._category_of: dict[str, str] = {}  # by instance token

    def write(self) -> Part:
        self._add_scene()
        self._add_sensors()
        for index, stamp_ns in enumerate(self.stamps_ns):
            self._add_keyframe(index, stamp_ns)
            images = self._write_pictures(index, stamp_ns)
            self._add_boxes(index, stamp_ns)
            self._write_pixels(images)
            self._write_label(index, stamp_ns, {name: image for name, (_, image) in images.items()})
        self._add_events()
        self._finish()
        return Part({name: self.rows[name] for name in (*TABLES, *EXTRA_TABLES)}, self.occ3d)

    def _token(self, *parts: str | int) -> str:
        return token(self.spec.city, self.spec.world_seed, *parts)

    def _sample(self, index: int) -> str:
        return self._token("sample", index)

    def _global_from_base(self, stamp_ns: int) -> NDArray[np.float64]:
        return self.global_from_world @ self.drive.world_from_base(stamp_ns)

    def _add_scene(self) -> None:
        sky, hazards = self.scene.sky, [hazard.kind for hazard in self.scene.hazards]
        self.rows["log"].append(
            {
                "token": self._token("log"),
                "logfile": self.log,
                "vehicle": "world",
                "date_captured": _DATE,
                "location": self.spec.city,
            }
        )
        self.rows["map"].append(
            {
                "token": self._token("map"),
                "log_tokens": [self._token("log")],
                "category": "semantic_prior",
                "filename": f"maps/{self.log}.png",
            }
        )
        self.rows["scene"].append(
            {
                "token": self._token("scene"),
                "name": self.spec.name,
                "description": f"{self.spec.city}, {sky.weather}, {sky.hour}, route "
                f"{self.scene.route_command.name.lower()}, {', '.join(hazards) or 'no hazard'}, "
                f"world seed {self.spec.world_seed}",
                "log_token": self._token("log"),
                "nbr_samples": len(self.stamps_ns),
                "first_sample_token": self._sample(0),
                "last_sample_token": self._sample(len(self.stamps_ns) - 1),
            }
        )

    def _add_sensors(self) -> None:
        for camera in self.rig.cameras:
            intrinsic = camera.calibration(self.options.size_px).image_from_camera
            self._add_sensor(camera.name.upper(), camera.base_from_camera, np.round(intrinsic, 6).tolist())
        # The lidar has x to the right and y forward.
        pose = planar_matrix(*LIDAR_POSITION_M[:2], -np.pi / 2)
        pose[2, 3] = LIDAR_POSITION_M[2]
        self._add_sensor(LIDAR_CHANNEL, pose, [])

    def _add_sensor(
        self, channel: str, base_from_sensor: NDArray[np.float64], intrinsic: list[list[float]]
    ) -> None:
        self.rows["calibrated_sensor"].append(
            {
                "token": self._token("calibrated_sensor", channel),
                "sensor_token": token("sensor", channel),
                **placed(base_from_sensor),
                "camera_intrinsic": intrinsic,
            }
        )

    def _add_keyframe(self, index: int, stamp_ns: int) -> None:
        self.rows["sample"].append(
            {
                "token": self._sample(index),
                "timestamp": stamp_ns // NS_PER_US,
                "scene_token": self._token("scene"),
            }
        )
        self._add_data(LIDAR_CHANNEL, index, stamp_ns, "samples", "pcd.bin")
        t0_ns = stamp_ns + self.rig[CAMERA_NAMES[0]].offset_ns
        in_sight = [event for event in self.drive.events if _in_sight(event, t0_ns)]
        self.rows["keyframes"].append(
            {
                "token": self._sample(index),
                "command": self.drive.command_at(t0_ns).name,
                "command_source": "route",
                "events": [self._token("event", event.name) for event in in_sight],
                "needs_sight": any(event.needs_sight(t0_ns) for event in self.drive.events),
            }
        )

    def _add_data(self, channel: str, index: int, stamp_ns: int, folder: str, suffix: str) -> Row:
        """A sample_data row of the keyframe `index`, with an ego pose of its own."""
        stamp_us = stamp_ns // NS_PER_US
        name = self._token("data", channel, stamp_us)
        width, height = (0, 0) if channel == LIDAR_CHANNEL else self.options.size_px
        self.rows["ego_pose"].append(
            {"token": name, "timestamp": stamp_us, **placed(self._global_from_base(stamp_us * NS_PER_US))}
        )
        row = {
            "token": name,
            "sample_token": self._sample(index),
            "ego_pose_token": name,
            "calibrated_sensor_token": self._token("calibrated_sensor", channel),
            "timestamp": stamp_us,
            "fileformat": suffix.split(".")[0],
            "is_key_frame": folder == "samples",
            "height": height,
            "width": width,
            "filename": f"{folder}/{channel}/{self.log}__{channel}__{stamp_us}.{suffix}",
        }
        self.rows["sample_data"].append(row)
        return row

    def _write_pictures(self, index: int, stamp_ns: int) -> dict[str, tuple[Row, CameraImage]]:
        """The keyframe's pictures by camera name, and the sweeps after it."""
        images = {}
        for camera in self.rig.cameras:
            images[camera.name] = self._write_picture(camera, index, stamp_ns + camera.offset_ns, "samples")
        if self.options.sweeps and index + 1 < len(self.stamps_ns):
            for sweep in range(1, SWEEPS_PER_KEYFRAME):
                after_ns = round(sweep * STEP_S * NS_PER_S / SWEEPS_PER_KEYFRAME)
                nearest = index + (sweep > SWEEPS_PER_KEYFRAME // 2)
                for camera in self.rig.cameras:
                    self._write_picture(camera, nearest, stamp_ns + camera.offset_ns + after_ns, "sweeps")
        return images

    def _write_picture(
        self, camera: RigCamera, index: int, stamp_ns: int, folder: str
    ) -> tuple[Row, CameraImage]:
        row = self._add_data(camera.name.upper(), index, stamp_ns, folder, "jpg")
        image = self.renderer.render(self.drive, camera, row["timestamp"] * NS_PER_US, self.options.size_px)
        _write(self.root / row["filename"], _jpeg(image.rgb))
        return row, image

    def _write_pixels(self, images: dict[str, tuple[Row, CameraImage]]) -> None:
        stride = self.options.pixel_stride
        if stride == 0:
            return
        for row, image in images.values():
            write_pixels(self.root, row["filename"], image, stride)

    def _write_label(self, index: int, stamp_ns: int, images: dict[str, CameraImage]) -> None:
        truth = self.labeler.occupancy(self.drive, stamp_ns, images)
        file = label_file(self.root, self.spec.name, self._sample(index))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            file,
            semantics=truth.semantics,
            mask_lidar=truth.mask_lidar.astype(np.uint8),
            mask_camera=truth.mask_camera.astype(np.uint8),
        )

    def _add_boxes(self, index: int, stamp_ns: int) -> None:
        for box in self._near(stamp_ns):
            self.rows["sample_annotation"].append(
                {
                    "token": self._token("annotation", box.name, index),
                    "sample_token": self._sample(index),
                    "instance_token": self._token("instance", box.name),
                    "visibility_token": "4",
                    "attribute_tokens": attributes_of(box.category, box.moving, box.name in self._standing),
                    **placed(self.global_from_world @ box.world_from_box),
                    "size": [round(side, 4) for side in box.size_m],
                    "num_lidar_pts": 0,
                    "num_radar_pts": 0,
                }
            )
            self._category_of[self._token("instance", box.name)] = box.category

    def _near(self, stamp_ns: int) -> list[Box]:
        ego_m = self.drive.world_from_base(stamp_ns)[:3, 3]
        return [
            box for box in self.drive.boxes_at(stamp_ns) if np.linalg.norm(box.center_m - ego_m) < BOX_RANGE_M
        ]

    def _add_events(self) -> None:
        for event in self.drive.events:
            self.rows["events"].append(
                {
                    "token": self._token("event", event.name),
                    "scene_token": self._token("scene"),
                    "name": event.name,
                    "kind": event.kind,
                    "instance_token": self._token("instance", event.thing),
                    **{
                        name: stamp_ns // NS_PER_US
                        for name, stamp_ns in (
                            ("onset", event.onset_ns),
                            ("visible", event.visible_ns),
                            ("react", event.react_ns),
                            ("end", event.end_ns),
                        )
                    },
                }
            )

    def _finish(self) -> None:
        chained(self.rows["sample"])
        tracks: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows["sample_data"]:
            tracks[row["calibrated_sensor_token"]].append(row)
        for track in tracks.values():
            chained(sorted(track, key=lambda row: row["timestamp"]))
        self.rows["instance"] = instance_rows(self.rows["sample_annotation"], self._category_of)
        self.rows["afterwards"].append(self._afterwards())
        write_can(self.root, self.spec.name, self.scene, self.drive, self.global_from_world)
        _write_map(self.root / self.rows["map"][0]["filename"], self.scene)

    def _afterwards(self) -> Row:
        """What ego and boxes do after the last keyframe, so that its future is known, too."""
        last_ns = self.stamps_ns[-1]
        steps = round(AFTER_S / AFTER_STEP_S)
        boxes = []
        for step in range(1, NUM_STEPS + 1):
            stamp_ns = last_ns + round(step * STEP_S * NS_PER_S)
            boxes += [
                {
                    "timestamp": stamp_ns // NS_PER_US,
                    "instance_token": instance,
                    **placed(self.global_from_world @ box.world_from_box),
                }
                for box in self._near(stamp_ns)
                if (instance := self._token("instance", box.name)) in self._category_of
            ]
        return {
            "token": self._token("scene"),
            "ego_poses": [
                {"timestamp": stamp_ns // NS_PER_US, **placed(self._global_from_base(stamp_ns))}
                for stamp_ns in (
                    last_ns + round(step * AFTER_STEP_S * NS_PER_S) for step in range(1, steps + 1)
                )
            ],
            "boxes": boxes,
        }


def _in_sight(event: Event, t0_ns: int) -> bool:
    return 0 < event.visible_ns <= t0_ns and (t0_ns <= event.end_ns or event.end_ns == 0)


def pixel_files(filename: str) -> tuple[str, str]:
    """Where the classes and the depth of a keyframe's picture lie, relative to the dataroot."""
    _, channel, name = filename.split("/")
    stem = name.removesuffix(".jpg")
    return f"semantics/{channel}/{stem}.png", f"depth/{channel}/{stem}.png"


def write_pixels(root: Path, filename: str, image: CameraImage, stride: int) -> None:
    """Classes (uint8, 17 is sky) and depth (uint16, centimeters along the optical axis, 0 for sky and beyond
    655 m) of a picture; with stride n those of the middle pixel of each n x n block.
    """
    middle = slice(stride // 2, None, stride)
    classes = image.class_ids[middle, middle]
    centimeters = np.round(image.depth_m[middle, middle] / DEPTH_UNIT_M)
    depth = np.where(centimeters <= np.iinfo(np.uint16).max, centimeters, 0).astype(np.uint16)
    for file, pixels in zip(pixel_files(filename), (classes, depth), strict=True):
        _write(root / file, _png(pixels))


def _write_map(file: Path, scene: Scene) -> None:
    """What may be driven on, white, at 0.1 m: the lower left corner is (0, 0) of the global frame."""
    road, flat = scene.ground.fields[Channel.ROAD], scene.ground.fields[Channel.FLAT]
    extent_m = (np.array(road.shape[::-1]) - 1) * CELL_M - 2 * (MARGIN_M - MAP_EDGE_M)
    width, height = (round(float(side) / MAP_CELL_M) for side in extent_m)
    # Map pixels to cells of the raster, whose first sample is the origin; rows run from top to bottom.
    scale, first = MAP_CELL_M / CELL_M, (MARGIN_M - MAP_EDGE_M + MAP_CELL_M / 2) / CELL_M
    raster_from_map = np.array([[scale, 0, first], [0, -scale, first + scale * (height - 1)]])
    drivable = np.minimum(road, -flat)
    fine = cv2.warpAffine(
        drivable, raster_from_map, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    _write(file, _png(np.greater(fine, 0).astype(np.uint8) * 255))


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), JPEG_QUALITY, "RGB"))


def _png(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
