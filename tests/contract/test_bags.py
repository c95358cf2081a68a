"""What a bag promises to any ROS 2 consumer, checked with `rosbags` alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from sparseoccvla.contracts import CAMERA_NAMES, EncodedImage
from sparseoccvla.data.drive import write_drive
from sparseoccvla.data.nuscenes_drive import scene_drive
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import planar_pose
from sparseoccvla.images import size_px
from tests.nuscenes_root import (
    SPEED_MPS,
    YAW_RATE_RADPS,
    base_from_sensor,
    global_from_base,
    make_root,
    sample_us,
)

REPOSITORY = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sparseoccvla", "bag", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def convert(root, scene, out, *options):
    done = run("from-nuscenes", "--dataroot", root, "--scene", scene, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read(bag):
    """Topic -> [(log time, message)], and topic -> QoS, by rosbags alone."""
    store = get_typestore(Stores.ROS2_JAZZY)
    text = (REPOSITORY / "msg/DrivingCommand.msg").read_text()
    store.register(get_types_from_msg(text, "sparseoccvla_msgs/msg/DrivingCommand"))
    found, order = {}, []
    with Reader(bag) as reader:
        qos = {connection.topic: connection.ext.offered_qos_profiles[0] for connection in reader.connections}
        for connection, stamp, data in reader.messages():
            message = store.deserialize_cdr(data, connection.msgtype)
            assert bytes(store.serialize_cdr(message, connection.msgtype)) == data
            found.setdefault(connection.topic, []).append((stamp, message))
            order.append((stamp, connection.topic))
    return found, qos, order


def header_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def matrix(transform):
    """4x4 of a Transform or Pose."""
    place = getattr(transform, "translation", None) or transform.position
    turn = getattr(transform, "rotation", None) or transform.orientation
    result = np.eye(4)
    result[:3, :3] = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
    result[:3, 3] = place.x, place.y, place.z
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("nuscenes") / "root")


@pytest.fixture(scope="module")
def converted(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("bags") / "scene"
    return convert(root, "scene-0001", out), *read(out)


def test_every_topic_of_the_superset_is_there(converted):
    _, found, _, _ = converted
    cameras = {f"/{c}/{t}" for c in CAMERA_NAMES for t in ("image_rect_compressed", "camera_info")}
    ground_truth = {"/ground_truth/trajectory", "/ground_truth/boxes"}
    others = {"/tf", "/tf_static", "/odom", "/command", "/lidar_top"}
    assert set(found) == cameras | ground_truth | others


def test_pictures_are_the_files_of_samples_and_sweeps_byte_for_byte(converted, root):
    summary, found, _, _ = converted
    for camera in CAMERA_NAMES:
        files = [*root.glob(f"s*/{camera.upper()}/*.jpg")]
        by_stamp = {int(file.stem.split("__")[-1]) * 1000: file.read_bytes() for file in files}
        images = found[f"/{camera}/image_rect_compressed"]
        assert {header_ns(m): bytes(m.data) for _, m in images} == by_stamp
        assert {(m.format, m.header.frame_id) for _, m in images} == {("jpeg", camera)}
    assert summary["pictures"] == 6 * (8 * 6 + 1)
    assert summary["missing_sweeps"] == 0


def test_log_time_is_the_sensor_stamp_and_never_falls(converted):
    _, found, _, order = converted
    assert [stamp for stamp, _ in order] == sorted(stamp for stamp, _ in order)
    for topic, messages in found.items():
        for stamp, message in messages:
            if topic.startswith("/tf"):
                assert {header_ns(t) for t in message.transforms} == {stamp}
            elif topic == "/ground_truth/boxes":
                assert {header_ns(m) for m in message.markers} == {stamp}
            else:
                assert header_ns(message) == stamp


def test_calibration_has_the_picture_s_stamp_frame_and_size(converted):
    _, found, _, _ = converted
    for camera in CAMERA_NAMES:
        infos, images = found[f"/{camera}/camera_info"], found[f"/{camera}/image_rect_compressed"]
        assert [stamp for stamp, _ in infos] == [stamp for stamp, _ in images]
        info = infos[0][1]
        size = size_px(EncodedImage(camera, 0, bytes(images[0][1].data)))
        assert (info.height, info.width) == size == (90, 160)
        assert info.header.frame_id == camera
        assert info.distortion_model == "plumb_bob"
        assert not info.d.any()
        np.testing.assert_array_equal(info.k.reshape(3, 3), [[120, 0, 81.5], [0, 120, 49], [0, 0, 1]])
        np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
        np.testing.assert_array_equal(info.r.reshape(3, 3), np.eye(3))


def test_static_transforms_are_latched_and_mount_every_sensor(converted):
    _, found, qos, _ = converted
    assert qos["/tf_static"].durability.name == "TRANSIENT_LOCAL"
    assert qos["/command"].durability.name == "TRANSIENT_LOCAL"
    assert qos["/odom"].durability.name == "VOLATILE"
    assert {profile.reliability.name for profile in qos.values()} == {"RELIABLE"}
    [(_, message)] = found["/tf_static"]
    mounted = {t.child_frame_id: (t.header.frame_id, matrix(t.transform)) for t in message.transforms}
    assert set(mounted) == {*CAMERA_NAMES, "lidar_top"}
    for frame, (parent, pose) in mounted.items():
        assert parent == "base_link"
        np.testing.assert_allclose(pose, base_from_sensor(frame.upper()), atol=1e-9)
    # Optical frames: z looks out of the lens; a quaternion read in the wrong order would not.
    np.testing.assert_allclose(mounted["cam_front"][1][:3, 2], [1, 0, 0], atol=1e-9)


def test_map_to_odom_to_base_link_is_the_true_pose_at_every_stamp(converted):
    _, found, _, _ = converted
    for stamp, message in found["/tf"]:
        chain = {(t.header.frame_id, t.child_frame_id): matrix(t.transform) for t in message.transforms}
        pose = chain["map", "odom"] @ chain["odom", "base_link"]
        np.testing.assert_allclose(pose, global_from_base(stamp / 1000), atol=1e-6)
    first = found["/odom"][0][1]
    assert abs(first.pose.pose.position.x) < 5  # odom starts near its origin, not 1.7 km away


def test_every_picture_stamp_has_a_transform_of_the_same_stamp(converted):
    _, found, _, order = converted
    known = {stamp for stamp, _ in found["/tf"]}
    pictures = [stamp for stamp, topic in order if topic == "/cam_front/image_rect_compressed"]
    assert set(pictures) <= known
    place = {entry: number for number, entry in enumerate(order)}
    for stamp in pictures:
        for needed in ("/tf", "/odom", "/cam_front/camera_info"):
            assert place[stamp, needed] < place[stamp, "/cam_front/image_rect_compressed"]


def test_odometry_has_pose_and_twist_of_the_drive(converted):
    summary, found, _, _ = converted
    assert summary["twist"] == "ego pose differences"
    transforms = {stamp: matrix(message.transforms[1].transform) for stamp, message in found["/tf"]}
    for stamp, message in found["/odom"]:
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        np.testing.assert_allclose(matrix(message.pose.pose), transforms[stamp], atol=1e-9)
        assert message.twist.twist.linear.x == pytest.approx(SPEED_MPS, abs=0.05)
        assert message.twist.twist.angular.z == pytest.approx(YAW_RATE_RADPS, abs=0.005)
    stamps = [stamp for stamp, _ in found["/odom"]]
    assert np.diff(stamps).max() < 0.05e9


def test_ground_truth_is_where_the_vehicle_really_went(converted):
    _, found, _, _ = converted
    paths = found["/ground_truth/trajectory"]
    assert [len(message.poses) for _, message in paths] == [6, 6, 6, 5, 4, 3, 2, 1]
    for t0, message in paths:
        assert message.header.frame_id == "base_link"
        for step, pose in enumerate(message.poses):
            assert header_ns(pose) == t0 + (step + 1) * 500_000_000
            truth = np.linalg.inv(global_from_base(t0 / 1000)) @ global_from_base(header_ns(pose) / 1000)
            found_m = matrix(pose.pose)[:2, 3]
            np.testing.assert_allclose(found_m, truth[:2, 3], atol=0.01)
            # The keyframe's lidar time instead of the camera's would be a third of a meter off.
            late = np.linalg.inv(global_from_base(t0 / 1000 + 35_491)) @ global_from_base(
                header_ns(pose) / 1000
            )
            assert np.linalg.norm(found_m - late[:2, 3]) > 0.3


def test_commands_say_that_they_come_from_the_future(converted):
    summary, found, _, _ = converted
    assert "not a route" in summary["command"]
    commands = [message for _, message in found["/command"]]
    assert {message.source for message in commands} == {"future_trajectory"}
    # An arc to the left: LEFT while 2 m to the side lie ahead, STRAIGHT near the end, then nothing known.
    assert [message.command for message in commands] == [1, 1, 1, 1, 1, 1, 3, 3, 0]
    until = commands[0].valid_until
    assert until.sec * 10**9 + until.nanosec == header_ns(commands[0]) + 2_000_000_000


def test_boxes_stand_where_the_annotations_are(converted):
    _, found, _, _ = converted
    boxes = found["/ground_truth/boxes"]
    assert [stamp for stamp, _ in boxes] == [sample_us(k) * 1000 for k in range(9)]
    clear, car = boxes[3][1].markers
    assert clear.action == 3
    assert (car.ns, car.header.frame_id) == ("vehicle.car", "map")
    np.testing.assert_allclose(matrix(car.pose)[:3, 3], [620, 1623, 0.8])
    assert (car.scale.x, car.scale.y, car.scale.z) == (4.6, 1.9, 1.6)
    assert Rotation.from_matrix(matrix(car.pose)[:3, :3]).as_euler("xyz")[2] == pytest.approx(1.2)


def test_lidar_turns_are_the_points_of_the_files(converted, root):
    summary, found, _, _ = converted
    files = sorted(root.glob("s*/LIDAR_TOP/*.bin"), key=lambda file: file.name)
    assert [bytes(m.data) for _, m in found["/lidar_top"]] == [file.read_bytes() for file in files]
    cloud = found["/lidar_top"][0][1]
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "intensity", "ring"]
    assert (cloud.width, cloud.point_step, cloud.row_step) == (50, 20, 1000)
    assert summary["lidar_turns"] == 81


def test_the_can_bus_gives_the_twist_where_it_has_records(root, tmp_path):
    (root / "can_bus").mkdir(exist_ok=True)
    rows = []
    for k in range(100):
        x, y, yaw = planar_pose(global_from_base(sample_us(0) + k * 20_000))
        rows.append(
            {
                "utime": sample_us(0) + k * 20_000,
                "pos": [x, y, 0],
                "orientation": [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)],
                "vel": [9.5, 0, 0],
                "rotation_rate": [0.5, 0.6, 0.25],
            }
        )
    file = root / "can_bus/scene-0001_pose.json"
    file.write_text(json.dumps(rows))
    try:
        summary = convert(root, "scene-0001", tmp_path / "bag")
        found, _, _ = read(tmp_path / "bag")
    finally:
        file.unlink()
    assert summary["twist"].startswith("CAN bus pose for ")
    first, last = rows[0]["utime"] * 1000, rows[-1]["utime"] * 1000
    for stamp, message in found["/odom"]:
        twist = message.twist.twist
        expected = (9.5, 0.25) if first <= stamp <= last else (SPEED_MPS, YAW_RATE_RADPS)
        assert (twist.linear.x, twist.angular.z) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_missing_sweeps_leave_a_keyframe_bag_and_are_counted(tmp_path):
    root = make_root(tmp_path / "root", keyframes=3)
    for file in root.glob("sweeps/CAM_*/*"):
        file.unlink()
    summary = convert(root, "scene-0001", tmp_path / "bag")
    assert (summary["pictures"], summary["missing_sweeps"]) == (18, 60)


def refused(root, out, scene="scene-0001", version=None):
    with pytest.raises(InputError) as caught:
        write_drive(scene_drive(Tables(root, version), scene).drive, out)
    assert not list(out.parent.glob("*bag*")), "something was left behind"
    return str(caught.value)


def test_bad_data_sets_are_refused_by_name_without_a_half_bag(tmp_path):
    out = tmp_path / "bag"
    assert "there is no data set at" in refused(tmp_path / "nowhere", out)
    assert "has no tables: wanted a folder such as v1.0-mini/" in refused(tmp_path, out)
    root = make_root(tmp_path / "root", keyframes=2, sweeps=False)
    assert "has no scene 'scene-9999', it has scene-0001" in refused(root, out, "scene-9999")
    assert "has no version 'v2': v1.0-mini; choose one with --version" in refused(root, out, version="v2")
    picture = next(root.glob("samples/CAM_BACK/*"))
    whole = picture.read_bytes()
    picture.write_bytes(b"not a picture")
    assert "picture of cam_back at" in refused(root, out)
    picture.unlink()
    assert "of a keyframe is missing; unpack the data set's samples/" in refused(root, out)
    picture.write_bytes(whole)
    table = root / "v1.0-mini/ego_pose.json"
    table.write_text(table.read_text()[:-40])
    assert "ego_pose.json is damaged" in refused(root, out)
    table.unlink()
    assert "ego_pose.json is missing; wanted a complete nuScenes data set" in refused(root, out)


@pytest.mark.slow
def test_the_command_line_says_it_in_one_line_and_exits_with_2(tmp_path):
    done = run("from-nuscenes", "--dataroot", tmp_path, "--scene", "scene-0001", "--out", tmp_path / "bag")
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"sparseoccvla: {tmp_path} has no tables")
    done = run("info", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no bag at" in done.stderr


REAL_DATA = os.environ.get("SPARSEOCCVLA_REAL_DATA", "")
real_data = pytest.mark.skipif(not REAL_DATA, reason="SPARSEOCCVLA_REAL_DATA names no folder of real data")


@real_data
@pytest.mark.real_data
def test_the_real_keyframe_becomes_a_bag_the_stack_can_use(tmp_path):
    root = Path(REAL_DATA) / "real_frame"
    summary = convert(root, "scene-0061", tmp_path / "real")
    found, _, _ = read(tmp_path / "real")
    assert summary["pictures"] == 6
    for camera in CAMERA_NAMES:
        [(stamp, image)] = found[f"/{camera}/image_rect_compressed"]
        [file] = (root / "samples" / camera.upper()).glob("*.jpg")
        assert bytes(image.data) == file.read_bytes()
        assert stamp == int(file.stem.split("__")[-1]) * 1000
    [(t0, _)] = found["/cam_front/image_rect_compressed"]
    before = [message for stamp, message in found["/odom"] if stamp <= t0]
    # The CAN bus of this scene begins 17 ms after the keyframe with 8.99 m/s, braking by 0.6 m/s2.
    assert len(before) >= 2
    assert before[-1].twist.twist.linear.x == pytest.approx(9.1, abs=0.25)
    assert abs(before[-1].twist.twist.angular.z) < 0.05
    assert [m.command for _, m in found["/command"]] == [0]  # one keyframe knows no future
    assert len(found["/ground_truth/boxes"][0][1].markers) == 69 + 1
