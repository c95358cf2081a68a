"""A small data set in nuScenes format whose motion is known in closed form.

The vehicle drives an arc: 10 m/s, turning left at 0.2 rad/s, on a ground that pitches and rolls it.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from sparseoccvla.geometry import arc_pose, planar_matrix

SPEED_MPS = 10.0
YAW_RATE_RADPS = 0.2
START_US = 1_600_000_000_000_000
WIDTH, HEIGHT = 160, 90
# When each sensor fires around the lidar's keyframe time, as in nuScenes.
OFFSET_US = {
    "CAM_FRONT": -35_491,
    "CAM_FRONT_RIGHT": -27_612,
    "CAM_BACK_RIGHT": -20_058,
    "CAM_BACK": -10_426,
    "CAM_BACK_LEFT": -528,
    "CAM_FRONT_LEFT": -43_107,
    "LIDAR_TOP": 0,
}
YAW_DEG = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_BACK_RIGHT": -110,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_FRONT_LEFT": 55,
}
PERIOD_US = {"LIDAR_TOP": 50_000}
CAMERA_PERIOD_US = 83_333


def global_from_base(stamp_us: float) -> np.ndarray:
    """The vehicle's true pose at any time."""
    elapsed_s = (stamp_us - START_US) / 1e6
    start = planar_matrix(600.0, 1600.0, 0.7)
    pose = start @ planar_matrix(*arc_pose(SPEED_MPS * elapsed_s, YAW_RATE_RADPS * elapsed_s))
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("yx", [0.02, -0.01]).as_matrix()
    return pose @ tilt


def make_root(
    root: Path,
    keyframes: int = 9,
    sweeps: bool = True,
    version: str = "v1.0-mini",
    scene: str = "scene-0001",
) -> Path:
    """Write tables, pictures, lidar turns and a map; returns the dataroot."""
    tables: dict[str, list[dict]] = {name: [] for name in TABLES}
    tables["category"] = [{"token": "car", "name": "vehicle.car", "description": ""}]
    tables["visibility"] = [{"token": str(k), "level": f"v{k}", "description": ""} for k in range(1, 5)]
    tables["log"] = [
        {
            "token": "log",
            "logfile": "n000-log",
            "vehicle": "n000",
            "date_captured": "2020-01-01",
            "location": "rightville",
        }
    ]
    tables["map"] = [
        {"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/m.png"}
    ]
    (root / "maps").mkdir(parents=True)
    (root / "maps/m.png").write_bytes(b"")
    for channel in OFFSET_US:
        _add_sensor(tables, channel)
    _add_samples(tables, scene, keyframes)
    _add_boxes(tables, keyframes)
    for channel in OFFSET_US:
        _add_data(root, tables, channel, keyframes, sweeps)
    folder = root / version
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose"),
    *("log", "scene", "sample", "sample_data", "sample_annotation", "map"),
)


def _quaternion_wxyz(matrix):
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return [w, x, y, z]


def base_from_sensor(channel: str) -> np.ndarray:
    """Mounting of a sensor; cameras look along z, the lidar has x right and y forward."""
    pose = planar_matrix(1.0, 0.0, np.deg2rad(YAW_DEG.get(channel, -90)))
    pose[2, 3] = 1.5
    if channel != "LIDAR_TOP":
        pose[:3, :3] = pose[:3, :3] @ np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])
    return pose


def _add_sensor(tables, channel):
    is_camera = channel != "LIDAR_TOP"
    tables["sensor"].append(
        {"token": f"s-{channel}", "channel": channel, "modality": "camera" if is_camera else "lidar"}
    )
    pose = base_from_sensor(channel)
    tables["calibrated_sensor"].append(
        {
            "token": f"c-{channel}",
            "sensor_token": f"s-{channel}",
            "translation": pose[:3, 3].tolist(),
            "rotation": _quaternion_wxyz(pose),
            "camera_intrinsic": [[120.0, 0, 81.5], [0, 120.0, 49.0], [0, 0, 1]] if is_camera else [],
        }
    )


def sample_us(index: int) -> int:
    """Time of a keyframe's lidar turn."""
    return START_US + 200_000 + 500_000 * index


def _add_samples(tables, scene, keyframes):
    for index in range(keyframes):
        tables["sample"].append(
            {
                "token": f"sample{index}",
                "timestamp": sample_us(index),
                "scene_token": "scene",
                "prev": f"sample{index - 1}" if index else "",
                "next": f"sample{index + 1}" if index + 1 < keyframes else "",
            }
        )
    tables["scene"].append(
        {
            "token": "scene",
            "name": scene,
            "description": "an arc to the left",
            "log_token": "log",
            "nbr_samples": keyframes,
            "first_sample_token": "sample0",
            "last_sample_token": f"sample{keyframes - 1}",
        }
    )


def _add_boxes(tables, keyframes):
    tables["instance"].append(
        {
            "token": "car0",
            "category_token": "car",
            "nbr_annotations": keyframes,
            "first_annotation_token": "box0",
            "last_annotation_token": f"box{keyframes - 1}",
        }
    )
    for index in range(keyframes):
        pose = planar_matrix(620.0, 1620.0 + index, 1.2)
        tables["sample_annotation"].append(
            {
                "token": f"box{index}",
                "sample_token": f"sample{index}",
                "instance_token": "car0",
                "visibility_token": "3",
                "attribute_tokens": [],
                "translation": [620.0, 1620.0 + index, 0.8],
                "size": [1.9, 4.6, 1.6],
                "rotation": _quaternion_wxyz(pose),
                "prev": f"box{index - 1}" if index else "",
                "next": f"box{index + 1}" if index + 1 < keyframes else "",
                "num_lidar_pts": 20,
                "num_radar_pts": 0,
            }
        )


def _add_data(root, tables, channel, keyframes, sweeps):
    period = PERIOD_US.get(channel, CAMERA_PERIOD_US)
    per_keyframe = round(500_000 / period) if sweeps else 1
    count = per_keyframe * (keyframes - 1) + 1
    for number in range(count):
        keyframe, sweep = divmod(number, per_keyframe)
        stamp = sample_us(keyframe) + OFFSET_US[channel] + sweep * period
        folder = "sweeps" if sweep else "samples"
        suffix = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
        filename = f"{folder}/{channel}/n000-log__{channel}__{stamp}.{suffix}"
        token = f"d-{channel}-{number}"
        pose = global_from_base(stamp)
        tables["ego_pose"].append(
            {
                "token": token,
                "timestamp": stamp,
                "translation": pose[:3, 3].tolist(),
                "rotation": _quaternion_wxyz(pose),
            }
        )
        tables["sample_data"].append(
            {
                "token": token,
                "sample_token": f"sample{keyframe + (sweep > per_keyframe / 2)}",
                "ego_pose_token": token,
                "calibrated_sensor_token": f"c-{channel}",
                "timestamp": stamp,
                "fileformat": suffix.split(".")[0],
                "is_key_frame": sweep == 0,
                "height": 0 if channel == "LIDAR_TOP" else HEIGHT,
                "width": 0 if channel == "LIDAR_TOP" else WIDTH,
                "filename": filename,
                "prev": f"d-{channel}-{number - 1}" if number else "",
                "next": f"d-{channel}-{number + 1}" if number + 1 < count else "",
            }
        )
        file = root / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_lidar(stamp) if channel == "LIDAR_TOP" else _picture(channel, number))


def _picture(channel, number):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    seed = list(OFFSET_US).index(channel)
    picture = np.stack([x + seed * 10, y * 2, np.full_like(x, number * 7 % 256)], axis=-1).astype(np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def _lidar(stamp):
    return np.random.default_rng(stamp).uniform(-30, 30, (50, 5)).astype(np.float32).tobytes()


def add_labels(root: Path, tokens: list[str], scene: str = "scene-0001") -> None:
    """Occ3D labels whose class tells the height, and OmniDrive language that tells the token."""
    semantics = np.full((200, 200, 16), 17, np.uint8)
    semantics[:, :, 2] = 11
    semantics[120:130, 90:95, 3:8] = 4
    seen = np.zeros(semantics.shape, np.uint8)
    seen[100:] = 1
    for token in tokens:
        folder = root / "gts" / scene / token
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "labels.npz", semantics=semantics, mask_lidar=1 - seen, mask_camera=seen)
        for kind, value in {
            "desc": {"description": f"This is {token}.", "action": "go"},
            "conv": [{"question": "Which?", "answer": token}],
            "vqa": [{"question": "Why?", "answer": "because"}],
            "keywords": "go straight",
        }.items():
            file = root / kind / "train" / f"{token}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
