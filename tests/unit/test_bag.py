"""Bags: what goes in comes out, damage is named, and nothing half-written is ever left."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sparseoccvla.contracts import CAMERA_NAMES, CameraCalibration, Command, DrivingCommand
from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagError, BagReader, BagWriter, RawMessage, is_our_bag
from sparseoccvla.data.camera_sets import count_camera_sets
from sparseoccvla.data.output import OutputError, new_folder

SECOND = 1_000_000_000
T0 = 1_532_402_927 * SECOND + 612_460_000


def write_drive(out: Path, frames: int = 3, leave_out: tuple[tuple[int, str], ...] = ()) -> Path:
    """Six cameras at 4 Hz with a spread of 40 ms, and a command."""
    with BagWriter(out, {"origin": "test"}) as bag:
        bag.write("/tf_static", T0, messages.transforms([(T0, "base_link", "cam_front", np.eye(4))]))
        bag.write("/command", T0, messages.driving_command(DrivingCommand(T0, Command.LEFT, "route")))
        for frame in range(frames):
            for number, camera in enumerate(CAMERA_NAMES):
                stamp = T0 + frame * SECOND // 4 + number * 8_000_000
                if (frame, camera) in leave_out:
                    continue
                picture, info = messages.camera_topics(camera)
                bag.write(info, stamp, messages.camera_info(stamp, CameraCalibration.fake(camera)))
                data = b"\xff\xd8" + camera.encode() + bytes(frame)
                bag.write(picture, stamp, messages.compressed_image(stamp, camera, data))
    return out


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_drive(tmp_path_factory.mktemp("bags") / "drive")


def test_what_is_written_is_read_in_time_order_with_its_bytes(bag):
    with BagReader(bag) as reader:
        found = list(reader.messages())
        assert [m.stamp_ns for m in found] == sorted(m.stamp_ns for m in found)
        assert len(found) == sum(topic.count for topic in reader.topics.values()) == 2 + 3 * 12
        assert (reader.start_ns, reader.end_ns) == (T0, found[-1].stamp_ns)
        assert reader.notes["origin"] == "test"
        assert reader.topics["/tf_static"].latched
        assert reader.topics["/tf_static"].qos[0].depth == 1
        assert not reader.topics["/cam_back/camera_info"].latched
        picture = reader.decode(next(iter(reader.messages(["/cam_back/image_rect_compressed"]))))
        assert bytes(picture.data) == b"\xff\xd8cam_back"
        assert (picture.header.frame_id, picture.format) == ("cam_back", "jpeg")
        command = reader.decode(next(iter(reader.messages(["/command"]))))
        assert (command.command, command.source) == (Command.LEFT, "route")
        assert messages.stamp_ns(command.header.stamp) == T0


def test_a_part_of_the_time_can_be_read(bag):
    with BagReader(bag) as reader:
        first, stop = T0 + SECOND // 4, T0 + SECOND // 2
        stamps = [m.stamp_ns for m in reader.messages((), first, stop)]
        assert len(stamps) == 12
        assert min(stamps) == first
        assert max(stamps) < stop


def test_the_file_alone_is_a_bag_too(bag):
    with BagReader(bag / "drive.mcap") as reader:
        assert len(list(reader.messages(["/command"]))) == 1


def test_raw_messages_pass_through_unchanged(bag, tmp_path):
    with BagReader(bag) as reader, BagWriter(tmp_path / "copy", {}) as copy:
        for name, topic in reader.topics.items():
            copy.add_topic(name, topic.type, topic.qos[0])
        for message in reader.messages():
            copy.write_raw(message)
    with BagReader(bag) as reader, BagReader(tmp_path / "copy") as copied:
        assert list(reader.messages()) == list(copied.messages())


def test_equal_input_gives_equal_bytes(tmp_path):
    first = write_drive(tmp_path / "a" / "drive")
    second = write_drive(tmp_path / "b" / "drive")
    for name in ("drive.mcap", "metadata.yaml"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_type_only_the_bag_defines_is_decoded_and_stays_out_of_the_shared_store(tmp_path):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("uint8 level\nstring[] names\n", "foreign_msgs/msg/Odd"))
    with Writer(tmp_path / "odd", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/odd", "foreign_msgs/msg/Odd", typestore=store)
        odd = store.types["foreign_msgs/msg/Odd"](level=3, names=["x"])
        writer.write(connection, 5, store.serialize_cdr(odd, "foreign_msgs/msg/Odd"))
    with BagReader(tmp_path / "odd") as reader:
        assert reader.decode(next(reader.messages())).names == ["x"]
    assert "foreign_msgs/msg/Odd" not in messages.typestore().types


def test_bytes_that_are_no_such_message_are_named(bag):
    with (
        BagReader(bag) as reader,
        pytest.raises(
            BagError,
            match=r"message on /command at 7 ns is no sparseoccvla_msgs/msg/DrivingCommand \(6 bytes",
        ),
    ):
        reader.decode(RawMessage("/command", 7, b"\0\1\0\0ab"))


def opened(path):
    with BagReader(path) as reader:
        return list(reader.messages())


def test_an_absent_empty_or_foreign_folder_is_named(tmp_path):
    with pytest.raises(BagError, match=r"there is no bag at .*nothing; give the folder that holds metadata"):
        opened(tmp_path / "nothing")
    with pytest.raises(BagError, match=r"is no bag: it has neither metadata.yaml nor an .mcap"):
        opened(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BagError, match=r"notes.txt is no bag: wanted a folder"):
        opened(tmp_path / "notes.txt")
    (tmp_path / "x.mcap").write_bytes(b"")
    with pytest.raises(BagError, match=r"has no metadata.yaml.*give the file itself \(.*x.mcap\)"):
        opened(tmp_path)
    with pytest.raises(BagError, match=r"x.mcap is damaged or not a rosbag2 bag \(.*empty"):
        opened(tmp_path / "x.mcap")
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: [}")
    with pytest.raises(BagError, match="is damaged or not a rosbag2 bag"):
        opened(tmp_path)


def test_a_bag_without_messages_says_so(tmp_path):
    with BagWriter(tmp_path / "hollow", {}):
        pass
    with pytest.raises(BagError, match="hollow holds no message"):
        opened(tmp_path / "hollow")


def test_an_unknown_topic_is_answered_with_the_known_ones(bag):
    with BagReader(bag) as reader, pytest.raises(BagError, match="has no topic /odom, it has /cam_back/"):
        list(reader.messages(["/odom"]))


def test_the_recording_file_is_missing(tmp_path):
    bag = write_drive(tmp_path / "drive")
    (bag / "drive.mcap").unlink()
    with pytest.raises(BagError, match="Some database files are missing"):
        opened(bag)


@pytest.fixture(scope="module")
def damageable(tmp_path_factory):
    bag = write_drive(tmp_path_factory.mktemp("damage") / "drive", frames=1)
    return bag, (bag / "drive.mcap").read_bytes()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_recording_is_always_reported(damageable, fraction):
    bag, whole = damageable
    (bag / "drive.mcap").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(BagError, match=r"drive is damaged or not a rosbag2 bag \(.+\); wanted MCAP"):
        opened(bag)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(1, 255), st.integers(1, 8))
def test_flipped_bytes_give_messages_or_a_bag_error_never_anything_else(damageable, place, flip, length):
    bag, whole = damageable
    damaged = bytearray(whole)
    for index in range(place, place + length):
        damaged[index % len(damaged)] ^= flip
    (bag / "drive.mcap").write_bytes(damaged)
    try:
        with BagReader(bag) as reader:
            for message in reader.messages():
                reader.decode(message)
    except BagError as error:
        assert str(bag) in str(error)  # noqa: PT017


def test_our_own_bag_is_replaced_a_foreign_folder_is_not(tmp_path):
    bag = write_drive(tmp_path / "drive", frames=3)
    write_drive(bag, frames=1)
    with BagReader(bag) as reader:
        assert reader.topics["/cam_back/camera_info"].count == 1
    (bag / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and was not made by this command, so it is left alone"):
        write_drive(bag)
    assert (bag / "diary.txt").read_text() == "mine"


def test_a_bag_somebody_else_recorded_is_not_ours(tmp_path):
    store = messages.typestore()
    with Writer(tmp_path / "theirs", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/odom", "nav_msgs/msg/Odometry", typestore=store)
        message = messages.odometry(5, np.eye(4), np.zeros(3), np.zeros(3))
        writer.write(connection, 5, store.serialize_cdr(message, "nav_msgs/msg/Odometry"))
    assert not is_our_bag(tmp_path / "theirs")
    assert is_our_bag(write_drive(tmp_path / "ours"))


def write_something_and_fail(bag):
    with BagWriter(bag, {}) as writer:
        message = messages.driving_command(DrivingCommand(T0, Command.LEFT))
        writer.write("/command", T0, message)
        writer.write("/no/such/topic", T0, message)


def test_a_failure_leaves_neither_a_half_bag_nor_touches_the_old_one(tmp_path):
    bag = write_drive(tmp_path / "drive")
    before = (bag / "drive.mcap").read_bytes()
    with pytest.raises(KeyError, match="/no/such/topic"):
        write_something_and_fail(bag)
    assert (bag / "drive.mcap").read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["drive"]


FILL = """
import sys
from pathlib import Path
from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagWriter
with BagWriter(Path(sys.argv[1]), {}) as bag:
    for k in range(60):
        image = messages.compressed_image(k, "cam_front", bytes(100_000))
        bag.write("/cam_front/image_rect_compressed", k, image)
"""


def test_a_full_disk_leaves_the_old_bag_and_no_rest(tmp_path):
    bag = write_drive(tmp_path / "drive")
    before = (bag / "drive.mcap").read_bytes()
    limit = 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", FILL, bag],
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OutputError: no room for" in done.stderr
    assert (bag / "drive.mcap").read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["drive"]


def test_too_small_a_disk_is_refused_before_any_work(tmp_path):
    with (
        pytest.raises(OutputError, match=r"MB free, about 1000000000 MB are needed"),
        BagWriter(tmp_path / "big", {}, needed_bytes=10**15),
    ):
        pytest.fail("work began")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    rest = tmp_path / ".drive.partial" / "drive"
    rest.mkdir(parents=True)
    (rest / "drive.mcap").write_bytes(b"half")
    write_drive(tmp_path / "drive")
    assert [item.name for item in tmp_path.iterdir()] == ["drive"]


def test_two_writers_do_not_share_a_folder(tmp_path):
    with (
        new_folder(tmp_path / "drive", is_our_bag),
        pytest.raises(OutputError, match=r"another process is writing .*drive right now"),
    ):
        write_drive(tmp_path / "drive")
    assert (tmp_path / "drive").is_dir()


def test_a_file_in_the_way_and_a_place_nobody_may_write_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file exists and is no folder"):
        write_drive(tmp_path / "file")
    with pytest.raises(OutputError, match=r"can't make .*; choose another --out"):
        write_drive(tmp_path / "file" / "below" / "bag")


def test_the_types_need_the_message_files(monkeypatch, tmp_path):
    monkeypatch.setattr(messages, "__file__", str(tmp_path / "a" / "b" / "messages.py"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    with pytest.raises(messages.MessageTypesError, match=r"no .msg files of sparseoccvla_msgs in"):
        messages.new_typestore()
    share = tmp_path / "share" / "sparseoccvla_msgs" / "msg"
    share.mkdir(parents=True)
    for file in (Path(__file__).parents[2] / "msg").glob("*.msg"):
        (share / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join(["/nowhere", str(tmp_path)]))
    assert "sparseoccvla_msgs/msg/PlanProposal" in messages.new_typestore().types


def test_camera_sets_are_counted_by_header_stamps(tmp_path, bag):
    found = count_camera_sets(bag)
    assert found.t0_ns == found.complete_t0_ns == tuple(T0 + k * SECOND // 4 for k in range(3))
    gaps = write_drive(tmp_path / "gaps", frames=4, leave_out=((1, "cam_back"), (2, "cam_front")))
    found = count_camera_sets(gaps)
    assert found.t0_ns == tuple(T0 + k * SECOND // 4 for k in (0, 1, 3))
    assert found.complete_t0_ns == tuple(T0 + k * SECOND // 4 for k in (0, 3))
    assert count_camera_sets(bag, tolerance_s=0.03).complete_t0_ns == ()
    with pytest.raises(BagError, match="no pictures on /roof/image_rect_compressed; it has /cam_back/"):
        count_camera_sets(bag, cameras=("roof", *CAMERA_NAMES))
