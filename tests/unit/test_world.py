"""The driving world: deterministic, drivable without collision, and seen as it is."""

from __future__ import annotations

import numpy as np
import pytest

from sparseoccvla.contracts import CAMERA_NAMES, FREE_CLASS, NUM_CLASSES
from sparseoccvla.metrics.polygons import rectangles_touch
from sparseoccvla.world import CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.ego import EGO_CENTER_M, EGO_LENGTH_M, EGO_WIDTH_M

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

SIZE_PX = (176, 96)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.make(3, "rightville")


@pytest.fixture(scope="module")
def drive(scene) -> Drive:
    return rollout(scene, 12.0)


def outline(center_m: np.ndarray, yaw_rad: float, length_m: float, width_m: float) -> np.ndarray:
    """(4, 2) corners of a box seen from above."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length_m / 2, width_m / 2]
    return center_m + half @ np.array([[c, s], [-s, c]])


def collisions(drive: Drive) -> list[str]:
    """Names of what the ego's box overlaps, looked at twice a second."""
    found = []
    for stamp in drive.stamps_ns[::10].tolist():
        pose = drive.world_from_base(stamp)
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        center = pose[:2, 3] + EGO_CENTER_M * pose[:2, 0]
        ego = outline(center, yaw, EGO_LENGTH_M, EGO_WIDTH_M)
        for box in drive.boxes_at(stamp):
            if np.linalg.norm(box.center_m[:2] - center) > 15:
                continue
            width, length, _ = box.size_m
            turned = np.arctan2(box.world_from_box[1, 0], box.world_from_box[0, 0])
            other = outline(box.center_m[:2], turned, length, width)
            if rectangles_touch(ego, other[None])[0]:
                found.append(box.name)
    return found


def test_the_same_seed_gives_the_same_drive_and_another_seed_another(scene, drive):
    again = rollout(Scene.make(3, "rightville"), 12.0)
    # Not bit for bit: numpy's vectorized functions may round by where an array happens to lie in memory.
    np.testing.assert_allclose(again.ego, drive.ego, atol=1e-12)
    np.testing.assert_allclose(again.agent_poses, drive.agent_poses, atol=1e-12)
    assert not np.array_equal(rollout(Scene.make(4, "rightville"), 12.0).ego, drive.ego)


@pytest.mark.parametrize(
    ("seed", "city"),
    [
        (1, "leftville"),
        (0, "rightville"),
        (2, "leftville"),
        (3, "rightville"),
    ],
)
def test_the_expert_drives_as_a_vehicle_can_and_hits_nothing(seed, city):
    drive = rollout(Scene.make(seed, city), 12.0)
    assert drive.speed_mps.min() >= 0
    assert drive.acceleration_mps2.min() >= -8.01
    assert drive.acceleration_mps2.max() <= 3.01
    moved = np.linalg.norm(np.diff(drive.ego[:, :2], axis=0), axis=1)
    assert moved.sum() > 10, "it drives at all"
    np.testing.assert_allclose(moved, drive.speed_mps[1:] * 0.05, atol=0.06)
    assert collisions(drive) == []


def test_the_collision_check_would_notice_one(drive):
    ghost = drive.agent_poses.copy()
    ghost[:, 0, :2] = drive.ego[:, :2]
    ghost[:, 0, 3] = drive.ego[:, 3]
    assert drive.agents[0].name in collisions(Drive(**{**vars(drive), "agent_poses": ghost}))


def test_the_ground_is_not_flat(drive):
    assert np.ptp(drive.ego[:, 2]) > 0.02
    assert np.ptp(drive.ego[:, 4]) > 1e-3


def test_events_are_seen_before_the_expert_reacts():
    events = [e for seed in range(4) for e in rollout(Scene.make(seed, "rightville"), 20.0).events]
    both = [e for e in events if e.visible_ns and e.react_ns]
    assert len(both) >= 3
    assert all(e.visible_ns <= e.react_ns <= e.end_ns for e in both)


def test_pictures_know_their_classes_depth_and_sky(scene, drive):
    renderer = Renderer(scene)
    stamp = int(drive.stamps_ns[60])
    rig = CameraRig.nuscenes_like()
    assert tuple(camera.name for camera in rig.cameras) == CAMERA_NAMES
    for camera in rig.cameras:
        image = renderer.render(drive, camera, stamp + camera.offset_ns, SIZE_PX)
        assert image.rgb.shape == (SIZE_PX[1], SIZE_PX[0], 3)
        sky = image.class_ids == FREE_CLASS
        np.testing.assert_array_equal(np.isinf(image.depth_m), sky)
        assert set(np.unique(image.class_ids)) <= set(range(NUM_CLASSES + 1))
        assert image.depth_m[~sky].min() > 0.1
        assert image.rgb.std() > 5, "something is to be seen"
        again = renderer.render(drive, camera, stamp + camera.offset_ns, SIZE_PX)
        np.testing.assert_array_equal(image.rgb, again.rgb)


def test_the_road_is_where_it_is_drawn(scene, drive):
    """A point of the road straight ahead projects to a pixel of road at its depth."""
    renderer = Renderer(scene)
    stamp = int(drive.stamps_ns[20])
    camera = CameraRig.nuscenes_like()["cam_front"]
    image = renderer.render(drive, camera, stamp, SIZE_PX)
    calibration = camera.calibration(SIZE_PX)
    world_from_camera = drive.world_from_base(stamp) @ camera.base_from_camera
    row = SIZE_PX[1] - 4
    column = SIZE_PX[0] // 2
    depth = float(image.depth_m[row, column])
    ray = np.linalg.inv(calibration.image_from_camera) @ [column, row, 1.0] * depth
    point = world_from_camera[:3, :3] @ ray + world_from_camera[:3, 3]
    height = float(np.ravel(scene.ground.height_m(point[None, :2]))[0])
    assert point[2] == pytest.approx(height, abs=0.1)
