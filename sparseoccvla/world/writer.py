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
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, STEP_S
from sparseoccvla.data.occ3d import label_file
from sparseoccvla.data.scene import NS_PER_US
from sparseoccvla.data.tables import LIDAR_CHANNEL
from sparseoccvla.world.cameras import CameraRig, RigCamera
from sparseoccvla.world.drive import START_NS
from sparseoccvla.world.effects import Cameras
from sparseoccvla.world.ground import CELL_M, MARGIN_M, Channel
from sparseoccvla.world.labels import Labeler
from sparseoccvla.world.language import keyframe_language, look_around
from sparseoccvla.world.lidar import Panorama
from sparseoccvla.world.render import CameraImage, Renderer
from sparseoccvla.world.rollout import rollout
from sparseoccvla.world.roots import RootOptions, SceneSpec
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.visibility import Onlooker, lidar_points_in, visibility_level
from sparseoccvla.world.writer_can import write_can
from sparseoccvla.world.writer_rows import AFTER_S, MAP_EDGE_M, Part, SceneRows, Sighting

FIRST_KEYFRAME_S = 0.5  # the CAN bus begins before the first keyframe
SWEEPS_PER_KEYFRAME = 6  # 12 Hz, the keyframe among them
JPEG_QUALITY = 90
MAP_CELLS_PER_M = 10
DEPTH_UNIT_M = 0.01
_SECONDS_APART = 60  # no two scenes of a root at one time


def write_scene(root: Path, spec: SceneSpec, options: RootOptions) -> Part:
    """Write the files of a scene and return its rows. Equal arguments give equal bytes."""
    return _SceneWriter(root, spec, options).write()


class _SceneWriter:
    def __init__(self, root: Path, spec: SceneSpec, options: RootOptions) -> None:
        self.root, self.spec, self.options = root, spec, options
        start_ns = START_NS + int(spec.name[-4:]) * _SECONDS_APART * NS_PER_S
        keyframes = round(options.duration_s / STEP_S)
        self.stamps_ns = [
            start_ns + round((FIRST_KEYFRAME_S + k * STEP_S) * NS_PER_S) for k in range(keyframes)
        ]
        seconds = FIRST_KEYFRAME_S + (keyframes - 1) * STEP_S + AFTER_S + 0.1
        self.scene = Scene.make(spec.world_seed, spec.city)
        self.drive = rollout(self.scene, seconds, start_ns)
        self.rig = CameraRig.nuscenes_like()
        self.renderer = Renderer(self.scene, options.device)
        self.cameras = Cameras(self.renderer, options.camera_effects, self.rig)
        self.labeler = Labeler(self.scene, self.rig, self.renderer.stage)
        self.onlooker = Onlooker(self.drive, self.renderer.stage, self.rig)
        self.rows = SceneRows(spec, options, self.scene, self.drive, self.stamps_ns)

    def write(self) -> Part:
        write_can(self.root, self.spec.name, self.scene, self.drive, self.rows.global_from_world)
        _write_map(self.root / self.rows.map_file, self.scene)
        for index, stamp_ns in enumerate(self.stamps_ns):
            self.rows.add_sample(index, stamp_ns + self.rig[CAMERA_NAMES[0]].offset_ns)
            images = self._write_pictures(index, stamp_ns)
            panorama = self._write_lidar(index, stamp_ns)
            self._add_boxes(index, stamp_ns, images, panorama)
            self._write_label(index, stamp_ns, images, panorama)
            self._write_language(index, stamp_ns, images)
        return self.rows.part()

    def _write_pictures(self, index: int, stamp_ns: int) -> dict[str, CameraImage]:
        """The keyframe's pictures by camera name, with their pixels, and the sweeps after it."""
        images = {}
        for camera in self.rig.cameras:
            file, image = self._write_picture(camera, index, stamp_ns + camera.offset_ns, "samples")
            images[camera.name] = image
            if file and self.options.pixel_stride:
                write_pixels(self.root, file, image, self.options.pixel_stride)
        if self.options.sweeps and index + 1 < len(self.stamps_ns):
            for sweep in range(1, SWEEPS_PER_KEYFRAME):
                after_ns = round(sweep * STEP_S * NS_PER_S / SWEEPS_PER_KEYFRAME)
                nearest = index + (sweep > SWEEPS_PER_KEYFRAME // 2)
                for camera in self.rig.cameras:
                    self._write_picture(camera, nearest, stamp_ns + camera.offset_ns + after_ns, "sweeps")
        return images

    def _write_picture(
        self, camera: RigCamera, index: int, stamp_ns: int, folder: str
    ) -> tuple[str, CameraImage]:
        """The file written, "" if the picture is lost, and what a perfect camera sees: labels are of that."""
        stamp_ns = stamp_ns // NS_PER_US * NS_PER_US
        size_px = self.options.size_px
        image = self.renderer.render(self.drive, camera, stamp_ns, size_px)
        arrived: CameraImage | None = image
        if self.options.effects:
            arrived = self.cameras.picture(self.drive, camera.name, stamp_ns, size_px)
        # Data sets in this format have a picture of the reference camera at every keyframe.
        if arrived is None and camera.name != CAMERA_NAMES[0]:
            return "", image
        row = self.rows.add_data(camera.name.upper(), index, stamp_ns, folder, "jpg")
        rgb = np.ascontiguousarray((arrived or image).rgb)
        _write(self.root / row["filename"], simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB"))
        return row["filename"], image

    def _write_lidar(self, index: int, stamp_ns: int) -> Panorama:
        row = self.rows.add_data(LIDAR_CHANNEL, index, stamp_ns, "samples", "pcd.bin")
        panorama = self.labeler.lidar.turn(self.drive, stamp_ns)
        if self.options.lidar:
            _write(self.root / row["filename"], panorama.points.tobytes())
        return panorama

    def _add_boxes(
        self, index: int, stamp_ns: int, images: dict[str, CameraImage], panorama: Panorama
    ) -> None:
        boxes = self.rows.near(stamp_ns)
        shares = self.onlooker.shares(images.values())
        points = lidar_points_in(boxes, panorama.points, self.drive.world_from_base(stamp_ns))
        self.rows.add_boxes(
            index,
            [
                Sighting(box, visibility_level(shares[box.instance]), int(count))
                for box, count in zip(boxes, points, strict=True)
            ],
        )

    def _write_label(
        self, index: int, stamp_ns: int, images: dict[str, CameraImage], panorama: Panorama
    ) -> None:
        truth = self.labeler.occupancy(self.drive, stamp_ns, images, panorama)
        file = label_file(self.root, self.spec.name, self.rows.sample_token(index))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            file,
            semantics=truth.semantics,
            mask_lidar=truth.mask_lidar.astype(np.uint8),
            mask_camera=truth.mask_camera.astype(np.uint8),
        )

    def _write_language(self, index: int, stamp_ns: int, images: dict[str, CameraImage]) -> None:
        view = look_around(self.scene, self.drive, stamp_ns, list(images.values()))
        chance = stream(self.spec.world_seed, self.spec.city, "language", index)
        for kind, content in keyframe_language(view, chance, self.spec.split).files().items():
            file = self.root / kind / self.spec.split / f"{self.rows.sample_token(index)}.json"
            _write(file, json.dumps(content).encode())


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
    fields = scene.ground.fields
    edge = round((MARGIN_M - MAP_EDGE_M) / CELL_M)
    drivable = np.minimum(fields[Channel.ROAD], -fields[Channel.FLAT])[edge - 1 : -edge, edge - 1 : -edge]
    scale = round(MAP_CELLS_PER_M * CELL_M)
    fine = cv2.resize(drivable, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    # A field's first sample lies on the corner of the raster, not in the middle of its first cell.
    start = scale + scale // 2
    white = np.where(fine[start : -scale // 2, start : -scale // 2] > 0, np.uint8(255), np.uint8(0))
    _write(file, _png(white[::-1]))


def _png(pixels: Any) -> bytes:
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 2])[1].tobytes()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
