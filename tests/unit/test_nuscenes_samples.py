"""Samples of a data set: everything belongs to t0, and the projection follows every pixel."""

import copy
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sparseoccvla.cli import app
from sparseoccvla.contracts import CAMERA_NAMES, Command
from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import CacheConfig, CacheError, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.can_bus import STEERING_RATIO
from sparseoccvla.data.commands import CommandEncoding, command_from_future
from sparseoccvla.data.occ3d import OccupancyLabel, label_file, read_label
from sparseoccvla.data.omnidrive import read_language
from sparseoccvla.data.splits import scenes_of_split
from sparseoccvla.data.tables import DataSetError, Tables
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse, planar_matrix, planar_pose, transform
from tests.nuscenes_root import (
    SPEED_MPS,
    YAW_RATE_RADPS,
    add_labels,
    base_from_sensor,
    global_from_base,
    make_root,
    sample_us,
)

SMALL = CacheConfig(height_px=64, width_px=160)
CAMERA_MATRIX = np.array([[120.0, 0, 81.5], [0, 120.0, 49.0], [0, 0, 1]])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("data") / "root")
    add_labels(root, ["sample0", "sample3"])
    (root / "v1.0-mini/splits.json").write_text(json.dumps({"train": ["scene-0001"], "val": []}))
    return root


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    return open_cache(Tables(root), "train", SMALL, tmp_path_factory.mktemp("cache") / "train")


@pytest.fixture(scope="module")
def with_sweeps(root, tmp_path_factory):
    config = CacheConfig(height_px=64, width_px=160, sweeps=True)
    return open_cache(Tables(root), "train", config, tmp_path_factory.mktemp("cache") / "sweeps")


def front_us(index):
    return sample_us(index) - 35_491


def test_t0_is_the_front_camera_s_stamp(cache):
    assert [cache.truth(k).t0_ns for k in range(len(cache))] == [front_us(k) * 1000 for k in range(9)]


def test_the_ego_state_is_the_drive_s(cache):
    ego = cache.truth(5).ego
    assert ego.motion_valid
    assert ego.past_valid.all()
    assert ego.speed_mps == pytest.approx(SPEED_MPS, abs=0.05)
    assert ego.yaw_rate_radps == pytest.approx(YAW_RATE_RADPS, abs=0.005)
    now = inverse(global_from_base(front_us(5)))
    for row, seconds in zip(ego.past_poses, (0.5, 1.0, 1.5, 2.0), strict=True):
        truth = planar_pose(now @ global_from_base(front_us(5) - seconds * 1e6))
        np.testing.assert_allclose(row, truth, atol=0.02)
    assert not cache.truth(0).ego.past_valid.any()


def test_waypoints_and_their_validity_are_those_of_the_drive(cache):
    truth = cache.truth(2)
    for step in range(6):
        pose = inverse(global_from_base(front_us(2))) @ global_from_base(front_us(2) + 5e5 * (step + 1))
        np.testing.assert_allclose(truth.future[step], planar_pose(pose), atol=0.01)
    assert [int(cache.truth(k).future_valid.sum()) for k in range(9)] == [6, 6, 6, 5, 4, 3, 2, 1, 0]
    assert truth.command is Command.LEFT
    assert cache.truth(8).command is Command.UNKNOWN


def project(inputs, camera, point_global, odom_from_global):
    u, v, depth, _ = inputs.image_from_odom[camera] @ odom_from_global @ [*point_global, 1]
    return np.array([u / depth, v / depth])


def odom_from_global(inputs):
    return inputs.odom_from_base @ inverse(global_from_base(inputs.t0_ns / 1000))


def pixel_by_hand(camera, stamp_us, point_global):
    """Pixel of the file, from the pose at the camera's own stamp."""
    camera_from_global = inverse(global_from_base(stamp_us) @ base_from_sensor(camera.upper()))
    return CAMERA_MATRIX @ (transform(camera_from_global, point_global) / 1)


def test_every_picture_is_projected_with_the_pose_of_its_own_stamp(cache):
    """A shared pose at t0 would be 0.43 m off for the last camera to fire."""
    [inputs] = cache.history(4)
    offsets = {"cam_front": -35_491, "cam_back_left": -528}
    for camera, offset in offsets.items():
        stamp_us = sample_us(4) + offset
        ahead = global_from_base(stamp_us) @ base_from_sensor(camera.upper()) @ [1.0, 0.5, 8.0, 1.0]
        u, v, depth = pixel_by_hand(camera, stamp_us, ahead[:3])
        expected = np.array([u / depth, v / depth - (90 - 64)])  # the sky is cut off
        number = CAMERA_NAMES.index(camera)
        found = project(inputs, number, ahead[:3], odom_from_global(inputs))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        if camera == "cam_back_left":
            u, v, depth = pixel_by_hand(camera, front_us(4), ahead[:3])
            assert np.linalg.norm(found - [u / depth, v / depth - 26]) > 2


def test_history_frames_are_half_a_second_apart_and_masked_at_the_start(cache, with_sweeps):
    for samples in (cache, with_sweeps):
        frames = samples.history(5, 4)
        assert [frame.t0_ns for frame in frames] == [front_us(5 - k) * 1000 for k in range(4)]
        assert [frame is None for frame in samples.history(1, 4)] == [False, False, True, True]


def test_history_is_jittered_only_where_there_are_sweeps(cache, with_sweeps):
    far = AugmentationConfig(history_jitter_s=0.2)
    for samples, expected in ((cache, {0}), (with_sweeps, {-83_333, 0, 83_333})):
        rng = np.random.default_rng(0)
        seen = {samples.history(5, 2, far, rng)[1].t0_ns // 1000 - front_us(4) for _ in range(40)}
        assert {min(expected, key=lambda e, s=s: abs(e - s)) for s in seen} == expected


def test_augmentation_moves_the_projection_with_the_pixels(cache):
    """A bright square drawn where a world point is seen must be found where the matrix says."""
    point = global_from_base(front_us(4)) @ base_from_sensor("CAM_FRONT") @ [0.6, 0.7, 8.0, 1.0]
    u, v, depth = pixel_by_hand("cam_front", front_us(4), point[:3])
    column, row = round(u / depth), round(v / depth)
    drawn = SampleCache(cache.folder)
    drawn._pictures = np.zeros_like(drawn._pictures)
    drawn._pictures[:, 0, row - 3 : row + 3, column - 3 : column + 3] = 255
    config = AugmentationConfig(brightness=0, contrast=0, saturation=0)
    y, x = np.mgrid[0:64, 0:160] + 0.5
    columns = []
    for seed in range(12):
        [inputs] = drawn.history(4, 1, config, np.random.default_rng(seed))
        light = inputs.images_rgb[0, ..., 0].astype(float)
        seen = np.array([(x * light).sum(), (y * light).sum()]) / light.sum()
        found = project(inputs, 0, point[:3], odom_from_global(inputs))
        np.testing.assert_allclose(found, seen, atol=1.0)
        columns.append(seen[0])
    assert min(columns) < 70  # mirrored ones are among them
    assert max(columns) > 90


def test_equal_seeds_give_equal_samples_and_others_differ(cache):
    config = AugmentationConfig()
    first, again, other = (
        cache.history(4, 2, config, np.random.default_rng(seed))[1].images_rgb for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_pictures_from_files_equal_those_stored(cache, root, tmp_path):
    config = CacheConfig(height_px=64, width_px=160, pictures="files")
    files = open_cache(Tables(root), "train", config, tmp_path / "files")
    [stored], [fresh] = cache.history(4), files.history(4)
    np.testing.assert_array_equal(stored.images_rgb, fresh.images_rgb)
    np.testing.assert_allclose(stored.image_from_odom, fresh.image_from_odom)


def test_a_missing_camera_is_masked_and_counted(tmp_path):
    root = make_root(tmp_path / "root", keyframes=2, sweeps=False)
    (root / "v1.0-mini/splits.json").write_text(json.dumps({"train": ["scene-0001"]}))
    next(root.glob("samples/CAM_BACK/*")).unlink()
    samples = open_cache(Tables(root), "train", SMALL, tmp_path / "cache")
    lacking = [k for k in range(2) if not samples.history(k)[0].valid.all()]
    assert len(lacking) == 1
    inputs = samples.history(lacking[0])[0]
    back = CAMERA_NAMES.index("cam_back")
    assert inputs.valid.tolist() == [number != back for number in range(6)]
    assert not inputs.images_rgb[back].any()
    assert samples.missing["pictures"] == 1
    assert samples.missing["samples without occupancy label"] == 2
    assert samples.missing["scenes without CAN bus"] == 1


def test_labels_come_back_and_only_where_they_are(cache, root):
    label, stored = cache.occupancy(3), read_label(label_file(root, "scene-0001", "sample3"))
    for name in ("semantics", "camera_mask", "lidar_mask"):
        np.testing.assert_array_equal(getattr(label, name), getattr(stored, name))
    assert cache.occupancy(1) is None
    assert cache.missing["samples without occupancy label"] == 7


def test_labels_are_moved_by_the_ego_motion_between_lidar_and_camera(cache):
    truth = cache.truth(3)
    expected = inverse(global_from_base(front_us(3))) @ global_from_base(sample_us(3))
    np.testing.assert_allclose(truth.base_from_label, expected, atol=1e-6)
    assert truth.base_from_label[0, 3] == pytest.approx(SPEED_MPS * 0.035491, abs=0.01)
    label = cache.occupancy(3)
    points, classes, _ = label.points(truth.base_from_label)
    car = points[classes == 4].mean(axis=0)
    still, still_classes, _ = label.points(np.eye(4))
    np.testing.assert_allclose(car - still[still_classes == 4].mean(axis=0), [0.35, 0.03, 0], atol=0.05)


def test_a_label_moved_by_whole_voxels_is_shifted_exactly():
    rng = np.random.default_rng(0)
    semantics = rng.integers(0, 18, (200, 200, 16), dtype=np.uint8)
    seen = rng.random((200, 200, 16)) < 0.5
    moved = OccupancyLabel(semantics, seen, ~seen).moved(planar_matrix(0.8, -0.4, 0.0))
    np.testing.assert_array_equal(moved.semantics[2:, :-1], semantics[:-2, 1:])
    np.testing.assert_array_equal(moved.camera_mask[2:, :-1], seen[:-2, 1:])
    assert (moved.semantics[:2] == 17).all()
    assert not moved.camera_mask[:2].any()
    assert not moved.lidar_mask[:, -1].any()


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "is damaged"),
        ({"semantics": np.zeros((2, 2, 2), np.uint8)}, "semantics of .* is uint8 .2, 2, 2.; wanted"),
        ({"semantics": np.zeros((200, 200, 16), np.int64)}, "semantics of .* is int64"),
        ({"semantics": np.full((200, 200, 16), 18, np.uint8)}, "holds class 18, wanted 0 to 17"),
        ({"mask_camera": np.full((200, 200, 16), 2, np.uint8)}, "a mask of .* beyond 0 and 1"),
    ],
)
def test_a_bad_label_is_named(tmp_path, arrays, text):
    good = {name: np.zeros((200, 200, 16), np.uint8) for name in ("semantics", "mask_lidar", "mask_camera")}
    np.savez(tmp_path / "labels.npz", **(good | arrays if arrays else {}))
    with pytest.raises(DataSetError, match=text):
        read_label(tmp_path / "labels.npz")
    (tmp_path / "labels.npz").write_bytes(b"PK\3\4 cut")
    with pytest.raises(DataSetError, match=r"labels.npz is damaged"):
        read_label(tmp_path / "labels.npz")
    with pytest.raises(DataSetError, match=r"none.npz is missing; unpack Occ3D's gts/"):
        read_label(tmp_path / "none.npz")


def test_language_comes_with_its_keyframe(cache, root):
    language = cache.language(3)
    assert (language.description, language.keywords) == ("This is sample3.", "go straight")
    assert [(q.kind, q.answer) for q in language.questions] == [("conv", "sample3"), ("vqa", "because")]
    assert cache.language(1).empty
    assert language == read_language(root, "sample3")


def test_damaged_language_is_named(tmp_path):
    file = tmp_path / "conv/val/x.json"
    file.parent.mkdir(parents=True)
    for content in ("{", '[{"question": "?"}]', '[{"question": "?", "answer": 3}]'):
        file.write_text(content)
        with pytest.raises(DataSetError, match=r"x.json is damaged .* wanted the conv layout"):
            read_language(tmp_path, "x")


def test_agents_are_where_they_are_annotated(cache):
    agents = cache.truth(2).agents
    assert agents.poses.shape == (1, 7, 3)
    # The box moves 1 m per keyframe along y of the world; steps lie 35 ms before annotations.
    truth = transform(inverse(global_from_base(front_us(2))), np.array([620.0, 1623.0 - 0.071, 0]))
    np.testing.assert_allclose(agents.poses[0, 1, :2], truth[:2], atol=0.06)
    assert agents.valid[0].all()
    assert cache.truth(8).agents.valid[0].tolist() == [True, False, False, False, False, False, False]
    np.testing.assert_allclose(agents.sizes_m, [[4.6, 1.9, 1.6]])
    futures = agents.futures()
    np.testing.assert_allclose(futures.centers_m[0, 0], [-truth[1], truth[0] - 0.985793], atol=0.06)


def test_two_public_numberings_are_told_apart():
    assert [CommandEncoding.OMNIDRIVE.decode(k) for k in range(3)] == [
        Command.LEFT,
        Command.RIGHT,
        Command.STRAIGHT,
    ]
    assert [CommandEncoding.UNIAD.decode(k) for k in range(3)] == [
        Command.RIGHT,
        Command.LEFT,
        Command.STRAIGHT,
    ]
    with pytest.raises(InputError, match=r"command 3 in the UNIAD encoding, wanted 0, 1 or 2"):
        CommandEncoding.UNIAD.decode(3)


@pytest.mark.parametrize(
    ("left_m", "expected"),
    [(2.0, "LEFT"), (1.99, "STRAIGHT"), (-2.0, "RIGHT"), (-1.99, "STRAIGHT"), (30, "LEFT")],
)
def test_the_command_is_the_side_of_the_last_known_waypoint(left_m, expected):
    waypoints = np.zeros((6, 3))
    waypoints[3, 1] = left_m
    waypoints[4:, 1] = -left_m  # not known, so it must not count
    valid = np.array([True] * 4 + [False] * 2)
    assert command_from_future(waypoints, valid).name == expected
    assert command_from_future(waypoints, np.zeros(6, bool)) is Command.UNKNOWN


def test_a_cache_is_reused_and_a_different_one_refused(cache, root):
    assert open_cache(Tables(root), "train", SMALL, cache.folder).tokens == cache.tokens
    with pytest.raises(CacheError, match=r"made with another config: .*'height_px': 64.* instead of .*32"):
        open_cache(Tables(root), "train", CacheConfig(height_px=32, width_px=160), cache.folder)
    with pytest.raises(CacheError, match=r"made with another split: train instead of val"):
        open_cache(Tables(root), "val", SMALL, cache.folder)


def test_a_cache_travels_to_a_worker_by_name(cache):
    assert cache.__reduce__() == (SampleCache, (cache.folder,))  # no arrays in what is sent
    received = copy.copy(cache)
    np.testing.assert_array_equal(received.history(3)[0].images_rgb, cache.history(3)[0].images_rgb)


def test_a_failed_build_leaves_nothing(root, tmp_path):
    broken = label_file(root, "scene-0001", "sample3")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    try:
        with pytest.raises(DataSetError, match=r"labels.npz is damaged"):
            open_cache(Tables(root), "train", SMALL, tmp_path / "cache")
    finally:
        broken.write_bytes(whole)
    assert not list(tmp_path.iterdir())


def test_a_damaged_cache_is_named(root, tmp_path):
    folder = tmp_path / "cache"
    open_cache(Tables(root), "train", SMALL, folder)
    (folder / "pictures.npy").write_bytes(b"")
    with pytest.raises(CacheError, match=r"pictures.npy is missing or damaged .* delete the cache"):
        SampleCache(folder)
    (folder / "cache.json").write_text('{"format": 0}')
    with pytest.raises(CacheError, match="has format 0, wanted 2; delete it"):
        SampleCache(folder)
    with pytest.raises(CacheError, match="is no cache of samples"):
        SampleCache(tmp_path)


def test_splits_come_from_the_root_or_else_from_the_devkit(root, tmp_path):
    assert scenes_of_split(Tables(root), "train") == ["scene-0001"]
    with pytest.raises(DataSetError, match="has no split 'test', choose from train, val"):
        scenes_of_split(Tables(root), "test")
    with pytest.raises(DataSetError, match="none of the 0 scenes of split 'val' is in"):
        scenes_of_split(Tables(root), "val")
    official = make_root(tmp_path / "root", keyframes=1, sweeps=False, scene="scene-0061")
    assert scenes_of_split(Tables(official), "mini_train") == ["scene-0061"]


def test_a_root_with_its_own_splits_needs_no_devkit(root, monkeypatch, tmp_path):
    monkeypatch.setattr("sparseoccvla.data.splits.find_spec", lambda _: None)
    assert scenes_of_split(Tables(root), "train") == ["scene-0001"]
    official = make_root(tmp_path / "root", keyframes=1, sweeps=False, scene="scene-0061")
    with pytest.raises(DataSetError, match=r"official splits .* are needed: pip install nuscenes-devkit"):
        scenes_of_split(Tables(official), "mini_train")


def test_the_command_line_builds_a_cache_once(root, tmp_path):
    arguments = ["data", "cache", "--dataroot", str(root), "--split", "train", "--out", str(tmp_path / "c")]
    for _ in range(2):
        result = CliRunner().invoke(app, [*arguments, "--size", "160x64"])
        summary = json.loads(result.stdout)
        assert (summary["samples"], summary["missing"]["samples without language"]) == (9, 7)
    result = CliRunner().invoke(app, [*arguments, "--size", "wide"])
    assert isinstance(result.exception, InputError)
    assert "--size is 'wide', wanted width x height such as 704x396" in str(result.exception)


def test_can_bus_records_are_samples_with_steering_from_before_the_first_keyframe(tmp_path):
    root = make_root(tmp_path / "root", keyframes=3, sweeps=False)
    (root / "v1.0-mini/splits.json").write_text(json.dumps({"train": ["scene-0001"]}))
    start_us = sample_us(0) - 600_000
    poses = {start_us + k * 20_000: planar_pose(global_from_base(start_us + k * 20_000)) for k in range(100)}
    (root / "can_bus").mkdir()
    (root / "can_bus/scene-0001_pose.json").write_text(
        json.dumps(
            [
                {
                    "utime": utime,
                    "pos": [x, y, 0],
                    "orientation": [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)],
                    "vel": [SPEED_MPS, 0, 0],
                    "rotation_rate": [0, 0, YAW_RATE_RADPS],
                }
                for utime, (x, y, yaw) in poses.items()
            ]
        )
    )
    monitor = root / "can_bus/scene-0001_vehicle_monitor.json"
    monitor.write_text(
        json.dumps([{"utime": start_us + k * 500_000, "steering": 10.0 + k} for k in range(4)])
    )
    first, second = (open_cache(Tables(root), "train", SMALL, tmp_path / "a").truth(k).ego for k in (0, 1))
    assert first.motion_valid
    assert first.past_valid.tolist() == [True, False, False, False]
    truth = planar_pose(inverse(global_from_base(front_us(0))) @ global_from_base(front_us(0) - 5e5))
    np.testing.assert_allclose(first.past_poses[0], truth, atol=0.02)
    assert second.speed_mps == pytest.approx(SPEED_MPS, abs=1e-3)
    # Of the steering wheel, in degrees; the newest record not after t0, never the next one.
    assert np.rad2deg(first.steering_rad) * STEERING_RATIO == pytest.approx(11.0)
    wheel = root / "can_bus/scene-0001_steeranglefeedback.json"
    wheel.write_text(json.dumps([{"utime": utime, "value": 0.815} for utime in poses]))
    finer = open_cache(Tables(root), "train", SMALL, tmp_path / "b").truth(0).ego
    assert finer.steering_rad == pytest.approx(0.05)
    monitor.write_text("[{}]")
    wheel.unlink()
    with pytest.raises(DataSetError, match=r"vehicle_monitor.json is damaged .* wanted a list of vehicle_m"):
        open_cache(Tables(root), "train", SMALL, tmp_path / "c")
