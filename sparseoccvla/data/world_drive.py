"""A drive of the procedural world as the topics of a bag."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context

import cv2
import numpy as np
import torch

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S, DrivingCommand, EncodedImage
from sparseoccvla.data.drive import Drive, GroundTruth
from sparseoccvla.data.motion import Odometry
from sparseoccvla.data.scene import Box
from sparseoccvla.world import drive as world
from sparseoccvla.world.cameras import CameraRig
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.render import Renderer
from sparseoccvla.world.rollout import rollout
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.world import future_of, motion_samples

PICTURE_SIZE_PX = (704, 396)  # width, height
_JPEG_QUALITY = 90
_FIRST_SET_S = 0.2  # the first camera of a set fires before its nominal time
_BOX_RANGE_M = 60.0


def set_stamps_ns(seconds: float, rate_hz: float) -> list[int]:
    """Nominal times of the camera sets of a drive: `seconds` of them, `rate_hz` each second."""
    first_ns = world.START_NS + round(_FIRST_SET_S * NS_PER_S)
    return [first_ns + round(i * NS_PER_S / rate_hz) for i in range(round(seconds * rate_hz))]


def world_drive(
    seed: int, city: str, seconds: float, rate_hz: float, effects: CameraEffects | None = None
) -> Drive:
    """A drive as `write_drive` takes it: six rendered cameras, odometry at 20 Hz, command of the route.

    The same arguments give the same bytes. Calibration and stamps are those of perfect cameras, whatever
    `effects` they have.
    """
    effects = effects or CameraEffects()
    # What the expert does in the last three seconds is the ground truth of the last sets.
    duration_s = seconds + _FIRST_SET_S + NUM_STEPS * STEP_S + 0.5
    drive = rollout(Scene.make(seed, city), duration_s)
    stamps_ns = set_stamps_ns(seconds, rate_hz)
    rig = CameraRig.nuscenes_like()
    return Drive(
        notes={
            "origin": f"procedural world {city}, seed {seed}",
            "command": "route",
            "twist": "exact",
            "camera_effects": ", ".join(f"{k}={v:g}" for k, v in asdict(effects).items() if v) or "none",
        },
        start_ns=world.START_NS,
        cameras={camera.name: camera.calibration(PICTURE_SIZE_PX) for camera in rig.cameras},
        base_from_lidar=None,
        odometry=_odometry(drive, stamps_ns[-1] + NS_PER_S // 2),
        commands=_commands(drive, stamps_ns[-1]),
        pictures=_pictures(seed, city, duration_s, effects, stamps_ns),
        clouds=(),
        ground_truth=[_ground_truth(drive, t_ns + rig.cameras[0].offset_ns) for t_ns in stamps_ns],
    )


def _odometry(drive: world.Drive, until_ns: int) -> Odometry:
    samples = tuple(sample for sample in motion_samples(drive) if sample.stamp_ns <= until_ns)
    return Odometry(drive.world_from_base(int(drive.stamps_ns[0])), samples, "exact")


def _commands(drive: world.Drive, until_ns: int) -> list[DrivingCommand]:
    """One whenever it changes."""
    commands: list[DrivingCommand] = []
    for stamp in drive.stamps_ns[drive.stamps_ns <= until_ns].tolist():
        command = drive.command_at(stamp)
        if not commands or commands[-1].command is not command:
            commands.append(DrivingCommand(stamp, command, "route"))
    return commands


def _pictures(
    seed: int, city: str, duration_s: float, effects: CameraEffects, stamps_ns: list[int]
) -> Iterator[EncodedImage]:
    """Rendered by one process for each core; which one painted a picture does not show in it."""
    paint = partial(_paint_set, seed, city, duration_s, effects)
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from chain.from_iterable(pool.map(paint, stamps_ns))


@cache
def _studio(seed: int, city: str, duration_s: float, effects: CameraEffects) -> tuple[world.Drive, Cameras]:
    """What a painting process makes once."""
    scene = Scene.make(seed, city)
    return rollout(scene, duration_s), Cameras(Renderer(scene), effects)


def _paint_set(
    seed: int, city: str, duration_s: float, effects: CameraEffects, t_ns: int
) -> list[EncodedImage]:
    """One set in the order in which its cameras fire."""
    drive, cameras = _studio(seed, city, duration_s, effects)
    images = []
    for camera in sorted(cameras.rig.cameras, key=lambda camera: camera.offset_ns):
        stamp_ns = t_ns + camera.offset_ns
        image = cameras.picture(drive, camera.name, stamp_ns, PICTURE_SIZE_PX)
        if image is None:
            continue
        _, data = cv2.imencode(".jpg", image.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        images.append(EncodedImage(camera.name, stamp_ns, data.tobytes()))
    return images


def _ground_truth(drive: world.Drive, t0_ns: int) -> GroundTruth:
    here_m = drive.world_from_base(t0_ns)[:3, 3]
    boxes = [
        Box(
            box.category,
            box.name,
            box.world_from_box,
            (box.size_m[1], box.size_m[0], box.size_m[2]),
            lidar_points=0,
            visibility=0,
        )
        for box in drive.boxes_at(t0_ns)
        if np.linalg.norm(box.center_m - here_m) < _BOX_RANGE_M
    ]
    return GroundTruth(t0_ns, future_of(drive, t0_ns), t0_ns, tuple(boxes))
