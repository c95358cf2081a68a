"""The loaders on real fragments of nuScenes, Occ3D and the CAN bus, held against independent code."""

import json

import numpy as np
import pytest

from sparseoccvla.contracts import CAMERA_NAMES, Command
from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.can_bus import CanMotion, read_motion
from sparseoccvla.data.commands import command_from_future
from sparseoccvla.data.future import future_poses
from sparseoccvla.data.motion import scene_odometry
from sparseoccvla.data.occ3d import read_label
from sparseoccvla.data.scene import load_scene
from sparseoccvla.data.tables import DataSetError, Tables
from sparseoccvla.geometry import PoseTrack, inverse, matrix_from_pose, pose_from_matrix, transform

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def scene(real_data):
    return load_scene(Tables(real_data / "real_frame"), "scene-0061")


@pytest.fixture(scope="module")
def devkit(real_data):
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is the oracle here")
    return nuscenes.NuScenes("v1.0-mini", str(real_data / "real_frame"), verbose=False)


def test_poses_calibration_and_boxes_equal_the_devkit_s(scene, devkit):
    sample = devkit.sample[0]
    keyframe, errors = scene.keyframes[0], []
    assert keyframe.stamp_ns == sample["timestamp"] * 1000
    for camera in CAMERA_NAMES:
        data = devkit.get("sample_data", sample["data"][camera.upper()])
        sensor = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
        ego = devkit.get("ego_pose", data["ego_pose_token"])
        frame, calibration = keyframe.frames[camera], scene.cameras[camera]
        assert frame.stamp_ns == data["timestamp"] * 1000
        np.testing.assert_array_equal(calibration.image_from_camera, sensor["camera_intrinsic"])
        for matrix, row in ((calibration.base_from_camera, sensor), (frame.global_from_base, ego)):
            w, *xyz = row["rotation"]
            np.testing.assert_allclose(matrix, matrix_from_pose(row["translation"], (*xyz, w)), atol=1e-12)
            swapped = matrix_from_pose(row["translation"], (w, *xyz))
            errors.append(np.abs(matrix - swapped).max())
    assert max(errors) > 0.5  # wxyz read as xyzw would be seen
    boxes = {box.token: box for box in devkit.get_boxes(sample["data"]["LIDAR_TOP"])}
    assert len(keyframe.boxes) == len(boxes) == 69
    centers = sorted(tuple(box.global_from_box[:3, 3]) for box in keyframe.boxes)
    np.testing.assert_allclose(centers, sorted(tuple(box.center) for box in boxes.values()), atol=1e-9)


def test_boxes_fall_on_the_pixels_the_devkit_says(real_data, devkit, tmp_path):
    """Through the cache's own projection, at the network's size; the devkit projects at full size."""
    root = Tables(real_data / "real_frame")
    samples = open_cache(root, "mini_train", CacheConfig(height_px=256, width_px=704), tmp_path / "cache")
    [inputs] = samples.history(0)
    odom_from_global = inputs.odom_from_base @ inverse(
        load_scene(root, "scene-0061").track.at(inputs.t0_ns)[0]
    )
    sample, seen = devkit.sample[0], 0
    for number, camera in enumerate(CAMERA_NAMES):
        _, boxes, intrinsic = devkit.get_sample_data(sample["data"][camera.upper()])
        for box in boxes:
            u, v, depth = intrinsic @ box.center
            row = devkit.get("sample_annotation", box.token)
            found = inputs.image_from_odom[number] @ odom_from_global @ [*row["translation"], 1]
            np.testing.assert_allclose(
                found[:2] / found[2], [u / depth * 0.44, v / depth * 0.44 - 140], atol=0.05
            )
            seen += 1
    assert seen > 20
    assert samples.missing["samples without occupancy label"] == 1
    truth = samples.truth(0)
    assert truth.ego.motion_valid
    assert truth.ego.speed_mps == pytest.approx(9.1, abs=0.25)
    assert truth.command is Command.UNKNOWN


def test_cameras_look_where_a_public_converter_says(real_data):
    """mmdet3d's own lidar-to-camera rotation, from calibration and ego poses of two real keyframes.

    Its translations contradict its own cam2ego and lidar2ego by a meter, so only rotations count.
    """
    for frame in json.loads((real_data / "mmdet3d_two_consecutive_frames.json").read_text()):
        base_from_lidar = _rigid(frame["lidar_points"]["lidar2ego"])
        for name, image in frame["images"].items():
            camera_from_lidar = inverse(_rigid(image["cam2ego"])) @ base_from_lidar
            difference = camera_from_lidar[:3, :3] @ _rigid(image["lidar2cam"])[:3, :3].T
            angle_rad = np.arccos(np.clip((np.trace(difference) - 1) / 2, -1, 1))
            assert np.degrees(angle_rad) < 0.05, name


def _rigid(matrix):
    """A float32 matrix of a file as an exact rigid transform."""
    return matrix_from_pose(*pose_from_matrix(np.array(matrix, float)))


def test_the_real_label_is_read_as_documented(real_data):
    [file] = (real_data / "occ3d").glob("*/labels.npz")
    label = read_label(file)
    occupied = label.semantics != 17
    assert int(occupied.sum()) == 39_092
    assert int(label.camera_mask.sum()) == 43_355
    assert int((occupied & label.camera_mask).sum()) == 22_864
    points, classes, seen = label.points(np.eye(4))
    assert (len(points), int(seen.sum())) == (39_092, 22_864)
    assert set(np.unique(classes)) == {0, 1, 3, 4, 6, 11, 13, 14, 15, 16}
    # Forward by the 35 ms to the camera at 9 m/s and back: boundaries lose, the scene stays.
    move = np.eye(4)
    move[0, 3] = 0.32
    there = label.moved(move)
    assert 0.9 < (there.semantics != 17).sum() / occupied.sum() < 1.05
    back = there.moved(inverse(move))
    agreement = (back.semantics == label.semantics)[2:-2].mean()
    assert agreement > 0.95
    unmoved, _, _ = label.points(np.eye(4))
    np.testing.assert_allclose(label.points(move)[0], transform(move, unmoved), atol=1e-5)


def test_the_real_can_bus_is_read_and_its_absence_is_no_error(real_data, scene, tmp_path):
    (tmp_path / "can_bus").mkdir()
    file = tmp_path / "can_bus/scene-0061_pose.json"
    file.write_bytes((real_data / "can_bus/scene-0061_pose.head3.json").read_bytes())
    motion = read_motion(tmp_path, "scene-0061")
    assert motion is not None
    np.testing.assert_allclose(motion.speed_mps, [8.988726, 8.976608, 8.964830], atol=1e-6)
    speed, rate = motion.at(1532402927675000000)
    assert 8.9766 < speed < 8.9888
    assert rate == pytest.approx(0.0173, abs=2e-4)
    assert motion.at(1532402927612460000) is None  # it begins after the keyframe
    assert read_motion(tmp_path, "scene-0161") is None
    odometry = scene_odometry(scene.track, motion)
    assert odometry.twist_source == "mean of the ego poses, too few to differ"
    file.write_text('[{"utime": 1}]')
    with pytest.raises(
        DataSetError, match=r"scene-0061_pose.json is damaged .*; wanted a list of pose messages"
    ):
        read_motion(tmp_path, "scene-0061")


def test_a_hole_in_the_can_bus_is_not_interpolated():
    stamps, speeds, none = np.array([0, 20_000_000, 1_020_000_000]), np.array([1.0, 2.0, 9.0]), np.zeros(3)
    motion = CanMotion(stamps, speeds, none, np.zeros((3, 3)), stamps[:1], np.array([0.1]))
    assert motion.steering_at(20_000_000) == 0.1
    assert motion.steering_at(-1) is None
    assert motion.steering_at(1_020_000_000) is None
    assert motion.at(10_000_000) == (1.5, 0.0)
    assert motion.at(500_000_000) is None
    assert motion.at(1_020_000_000) == (9.0, 0.0)


@pytest.mark.parametrize("name", ["0061", "0103", "0553", "0757", "0916", "1077"])
def test_speed_and_waypoints_of_real_drives(real_data, name):
    with np.load(real_data / f"trajectories/scene-{name}.npz", allow_pickle=False) as stored:
        places, headings = stored["ego_xyz_10hz"], stored["ego_heading_10hz"]
        velocities = stored["ego_velocity_xy_10hz"]
    poses = [
        matrix_from_pose(place, (0, 0, np.sin(yaw / 2), np.cos(yaw / 2)))
        for place, yaw in zip(places, headings, strict=True)
    ]
    track = PoseTrack(tuple(k * 100_000_000 for k in range(len(poses))), tuple(poses))
    # The median, as single stamps of this resampled log are 25 ms wrong: steps come in pairs, one too
    # short and one too long for the logged speed.
    coarse = PoseTrack(track.stamps_ns[::2], track.fixed_from_base[::2])
    between = np.array([coarse.at(stamp)[0][:3, 3] for stamp in track.stamps_ns[1:-2:2]])
    assert np.median(np.linalg.norm(between - places[1:-2:2], axis=1)) < 0.02
    odometry = scene_odometry(track, None)
    assert odometry.twist_source == "ego pose differences"
    speeds = np.array([sample.speed_mps for sample in odometry.samples])
    logged = np.linalg.norm(velocities[1:], axis=1)
    assert np.median(np.abs(speeds - logged)) < 0.2
    index = len(poses) // 3
    future, valid = future_poses(track, index * 100_000_000)
    assert valid.all()
    there = transform(inverse(poses[index]), places[index + 5 : index + 31 : 5])[:, :2]
    np.testing.assert_allclose(future[:, :2], there, atol=1e-6)
    assert command_from_future(future, valid) in (Command.LEFT, Command.RIGHT, Command.STRAIGHT)
