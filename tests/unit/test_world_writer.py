"""A generated data set is what nuScenes' own tools expect, and says what its pictures show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility
from nuscenes.utils.splits import get_scenes_of_split
from pyquaternion import Quaternion

from sparseoccvla.contracts import CAMERA_NAMES, Command
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.categories import class_of_category
from sparseoccvla.data.tables import Tables
from sparseoccvla.geometry import inverse, planar_pose
from sparseoccvla.world import Drive, Scene, rollout
from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import VERSION, Request, RootOptions

pytestmark = pytest.mark.slow

OPTIONS = RootOptions(352, 198, 2.0)
BOX_CLASSES = tuple(range(1, 11))  # scenery has other ones, and things without a class are "others"
SLACK_M = 0.3  # what moves between a camera's and the lidar's time
KEYFRAMES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "root"
    generate(root, OPTIONS, Request("rightville", "train", 0, 1))
    generate(root, OPTIONS, Request("leftville", "val", 0, 1))
    return root


@pytest.fixture(scope="module")
def devkit(root) -> NuScenes:
    return NuScenes(VERSION, str(root), verbose=False)


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory) -> SampleCache:
    return open_cache(Tables(root), "train", CacheConfig(), tmp_path_factory.mktemp("cache") / "train")


@pytest.fixture(scope="module")
def drive() -> Drive:
    """What the train scene's writer drove."""
    torch.set_num_threads(1)
    return rollout(Scene.make(2000, "rightville"), 6.0, 1_700_000_000_000_000_000 + 2000 * 60 * 10**9)


def test_the_devkit_loads_lists_and_renders_it(devkit, root, tmp_path, capsys):
    devkit.list_scenes()
    assert "scene-2000" in capsys.readouterr().out
    assert get_scenes_of_split("world_train", devkit) == ["scene-2000"]
    assert get_scenes_of_split("world_val", devkit) == ["scene-9500"]
    assert len(devkit.sample) == 2 * KEYFRAMES
    sample = devkit.sample[1]
    assert set(sample["data"]) == {*(name.upper() for name in CAMERA_NAMES), "LIDAR_TOP"}
    for channel in ("CAM_BACK", "LIDAR_TOP"):
        devkit.render_sample_data(sample["data"][channel], out_path=str(tmp_path / channel), verbose=False)
    devkit.render_pointcloud_in_image(sample["token"], out_path=str(tmp_path / "points"), verbose=False)
    seen = max(devkit.sample_annotation, key=lambda row: row["num_lidar_pts"])
    assert seen["num_lidar_pts"] > 50
    devkit.render_annotation(seen["token"], out_path=str(tmp_path / "box"))
    devkit.render_egoposes_on_map("rightville", out_path=str(tmp_path / "map"))
    assert len(list(tmp_path.iterdir())) == 5


def test_the_ego_drives_on_the_drivable_map(devkit):
    poses = [
        devkit.get("ego_pose", devkit.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        for sample in devkit.sample[:KEYFRAMES]
    ]
    [row] = [row for row in devkit.map if row["filename"].endswith("w2000-rightville.png")]
    x, y = np.array([pose["translation"][:2] for pose in poses]).T
    assert row["mask"].is_on_mask(x, y).all()
    assert not row["mask"].is_on_mask(x + 30, y - 45).all()


def test_annotations_are_chained_and_their_attributes_known(devkit):
    for instance in devkit.instance:
        tokens, token = [], instance["first_annotation_token"]
        while token:
            tokens.append(token)
            token = devkit.get("sample_annotation", token)["next"]
        assert len(tokens) == instance["nbr_annotations"]
        assert tokens[-1] == instance["last_annotation_token"]
    for row in devkit.sample_annotation:
        assert row["visibility_token"] in "1234"
        for attribute in row["attribute_tokens"]:
            devkit.get("attribute", attribute)


def test_the_devkit_reads_the_can_bus(root, drive):
    can = NuScenesCanBus(str(root))
    pose = can.get_messages("scene-2000", "pose")
    monitor = can.get_messages("scene-2000", "vehicle_monitor")
    wheel = can.get_messages("scene-2000", "steeranglefeedback")
    meta = can.get_messages("scene-2000", "meta")
    assert meta["pose"]["message_freq"] == pytest.approx(50)
    assert meta["vehicle_monitor"]["message_freq"] == pytest.approx(2)
    ego = drive.ego_at(pose[60]["utime"] * 1000)
    assert pose[60]["vel"][0] == pytest.approx(ego.speed_mps, abs=1e-5)
    assert pose[60]["rotation_rate"][2] == pytest.approx(ego.yaw_rate_radps, abs=1e-5)
    at_wheel = np.interp(monitor[3]["utime"], [w["utime"] for w in wheel], [w["value"] for w in wheel])
    assert monitor[3]["steering"] == pytest.approx(np.degrees(at_wheel), abs=0.1)
    route, path = can.get_pose_and_route("scene-2000")
    far = np.linalg.norm(path[:, None] - route[None], axis=-1).min(axis=1)
    assert far.max() < 1.0  # of 5 m that the devkit takes for aligned


def surface_share(devkit: NuScenes, root: Path, turn_deg: float = 0.0, swap: bool = False) -> float:
    """Share of the pixels of boxes' classes whose first surface lies in a box of that class."""
    agree = total = 0
    for sample in devkit.sample:
        tokens = dict(sample["data"])
        if swap:
            tokens["CAM_FRONT"], tokens["CAM_BACK"] = tokens["CAM_BACK"], tokens["CAM_FRONT"]
        for camera in (name.upper() for name in CAMERA_NAMES):
            shown = devkit.get("sample_data", tokens[camera])["filename"]
            _, boxes, intrinsic = devkit.get_sample_data(
                sample["data"][camera], box_vis_level=BoxVisibility.NONE
            )
            classes, depth_m = (
                cv2.imread(str(root / shown.replace("samples", kind).replace("jpg", "png")), -1)
                for kind in ("semantics", "depth")
            )
            assert classes.shape == depth_m.shape == (198, 352)
            depth_m = depth_m / 100
            v, u = np.nonzero(np.isin(classes, BOX_CLASSES) & (depth_m < 60))
            rays = np.linalg.inv(intrinsic) @ np.stack([u, v, np.ones(len(u))])
            turn = Quaternion(axis=(0, 1, 0), degrees=turn_deg).rotation_matrix
            found = np.zeros(len(u), bool)
            first_m = np.full(len(u), np.inf)
            for box in boxes:
                box_from_camera = box.rotation_matrix.T @ turn
                start = -box.rotation_matrix.T @ box.center
                width, length, height = box.wlh
                half = np.array([length, width, height])[:, None] / 2 + SLACK_M
                with np.errstate(divide="ignore"):
                    one, two = ((side * half - start[:, None]) / (box_from_camera @ rays) for side in (-1, 1))
                enter, leave = np.minimum(one, two).max(axis=0), np.maximum(one, two).min(axis=0)
                inside = (enter < leave) & (enter < depth_m[v, u]) & (depth_m[v, u] < leave)
                nearer = inside & (enter < first_m)
                found[nearer] = classes[v, u][nearer] == class_of_category(box.name)
                first_m[nearer] = enter[nearer]
            agree, total = agree + int(found.sum()), total + len(u)
    assert total > 2000
    return agree / total


def test_boxes_agree_with_the_saved_pictures_in_depth_order(devkit, root):
    assert surface_share(devkit, root) >= 0.9


@pytest.mark.parametrize("planted", [{"turn_deg": 5.0}, {"turn_deg": -5.0}, {"swap": True}])
def test_a_wrong_camera_would_be_noticed(devkit, root, planted):
    assert surface_share(devkit, root, **planted) < 0.9


def test_every_keyframe_is_labeled_and_spoken_of(cache):
    assert not cache.missing
    assert len(cache) == KEYFRAMES
    for index in range(KEYFRAMES):
        label = cache.occupancy(index)
        assert (label.semantics != 17).sum() > 5000
        assert label.camera_mask.sum() > 5000
        language = cache.language(index)
        assert language.description
        assert language.questions


def test_the_future_is_known_up_to_the_last_keyframe(cache, drive):
    for index in range(KEYFRAMES):
        truth = cache.truth(index)
        assert truth.future_valid.all()
        now = inverse(drive.world_from_base(truth.t0_ns))
        for step, pose in enumerate(truth.future):
            then = drive.world_from_base(truth.t0_ns + (step + 1) * 500_000_000)
            np.testing.assert_allclose(pose, planar_pose(now @ then), atol=0.03)
        assert truth.agents.valid.mean() > 0.8


def test_the_ego_state_is_the_drive_s_and_not_after_t0(cache, drive):
    for index in range(KEYFRAMES):
        ego = cache.truth(index).ego
        exact = drive.ego_at(ego.stamp_ns)
        assert ego.motion_valid
        assert ego.steering_valid
        assert ego.speed_mps == pytest.approx(exact.speed_mps, abs=0.05)
        assert ego.yaw_rate_radps == pytest.approx(exact.yaw_rate_radps, abs=0.02)
        assert ego.steering_rad == pytest.approx(exact.steering_rad, abs=0.01)
        assert ego.past_valid.sum() == min(index + 1, 4)  # the CAN bus begins half a second before


def test_the_command_is_the_route_s(cache, drive):
    for index in range(KEYFRAMES):
        truth = cache.truth(index)
        assert truth.command is drive.command_at(truth.t0_ns)
        assert truth.command is not Command.UNKNOWN
        assert truth.command_source == "route"


def test_keyframes_that_need_sight_are_flagged(cache, drive, root):
    flagged = [any(e.needs_sight(cache.truth(k).t0_ns) for e in drive.events) for k in range(KEYFRAMES)]
    assert cache.needs_sight.tolist() == flagged
    rows = json.loads((root / VERSION / "events.json").read_bytes())
    names = {(row["name"], row["visible"] * 1000, row["react"] * 1000) for row in rows}
    assert {(e.name, e.visible_ns, e.react_ns) for e in drive.events if not e.react_ns} <= names


def test_occ3d_s_annotations_name_files_that_exist(root):
    stored = json.loads((root / "annotations.json").read_bytes())
    assert stored["train_split"] == ["scene-2000"]
    assert stored["val_split"] == ["scene-9500"]
    for scene in stored["scene_infos"].values():
        assert len(scene) == KEYFRAMES
        for frame in scene.values():
            assert (root / frame["gt_path"]).exists()
            assert len(frame["camera_sensor"]) == 6
            assert all((root / camera["img_path"]).exists() for camera in frame["camera_sensor"].values())


def test_sweeps_come_at_12_hz(tmp_path):
    options = replace(OPTIONS, width_px=64, height_px=36, duration_s=1.0, sweeps=True, lidar=False)
    generate(tmp_path / "root", options, Request("rightville", "train", 0, 1))
    devkit = NuScenes(VERSION, str(tmp_path / "root"), verbose=False)
    row = devkit.get("sample_data", devkit.sample[0]["data"]["CAM_FRONT"])
    stamps = [row["timestamp"]]
    while row["next"]:
        row = devkit.get("sample_data", row["next"])
        stamps.append(row["timestamp"])
        assert (tmp_path / "root" / row["filename"]).exists()
    np.testing.assert_allclose(np.diff(stamps), 1e6 / 12, atol=1)
    assert len(stamps) == 7
