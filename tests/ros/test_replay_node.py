"""The player: the bag's own bytes, when they are due, with a clock; a clear end without a bag."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for
from nav_msgs.msg import Odometry
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, TransformListener

from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagReader, BagWriter
from sparseoccvla.geometry import planar_matrix
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.replay_node import ReplayNode

SECOND = 1_000_000_000
START_NS = 1_600_000_000 * SECOND
STEPS = 20  # odometry at 20 Hz for a second


@pytest.fixture
def bag(tmp_path) -> Path:
    path = tmp_path / "bag"
    with BagWriter(path, {}) as writer:
        entry = (START_NS, "base_link", "cam_front", planar_matrix(1.5, 0, 0))
        writer.write("/tf_static", START_NS, messages.transforms([entry]))
        for i in range(STEPS):
            stamp = START_NS + i * SECOND // STEPS
            pose = planar_matrix(8.0 * i / STEPS, 0, 0)
            entries = [
                (stamp, "map", "odom", planar_matrix(5, 0, 0)),
                (stamp, "odom", "base_link", pose),
            ]
            writer.write("/tf", stamp, messages.transforms(entries))
            twist = np.array([8.0, 0, 0])
            writer.write("/odom", stamp, messages.odometry(stamp, pose, twist, np.zeros(3)))
    return path


def play(graph, bag: Path, **parameters) -> ReplayNode:
    node = graph.add(ReplayNode, bag=str(bag), **parameters)
    graph.wait_active(node)
    return node


def test_every_message_comes_unchanged_and_in_time(graph, bag):
    raw: list[bytes] = []
    arrived: list[float] = []

    def keep(data: bytes) -> None:
        raw.append(bytes(data))
        arrived.append(time.monotonic())

    graph.listener.create_subscription(Odometry, "odom", keep, qos.STREAM, raw=True)
    play(graph, bag, tail_s=5.0)
    wait_for(lambda: len(raw) == STEPS, "every odometry message")
    with BagReader(bag) as reader:
        assert raw == [message.data for message in reader.messages(["/odom"])]
    assert arrived[-1] - arrived[0] == pytest.approx((STEPS - 1) / STEPS, abs=0.2)


def test_the_clock_is_never_behind_a_message(graph, bag):
    clock = [0]
    behind: list[int] = []
    graph.listener.create_subscription(
        Clock, "/clock", lambda m: clock.append(convert.time_ns(m.clock)), qos.STREAM
    )
    odometry: list[Odometry] = graph.listen(Odometry, "odom")
    play(graph, bag, tail_s=0.5)
    wait_for(lambda: len(odometry) == STEPS, "every odometry message")
    wait_for(lambda: clock[-1] > START_NS + SECOND, "the clock to go on after the bag")
    assert sorted(clock) == clock
    stamps = [convert.time_ns(message.header.stamp) for message in odometry]
    behind = [stamp for stamp in stamps if stamp not in clock]
    assert behind == [], "a tick with every message, so that ages can be told"


def test_a_default_tf2_listener_gets_the_transforms(graph, bag):
    buffer = Buffer()
    TransformListener(buffer, graph.listener, spin_thread=False)
    play(graph, bag, tail_s=5.0)
    wait_for(lambda: buffer.can_transform("map", "cam_front", convert.time_msg(START_NS + SECOND // 2)), "tf")
    found = buffer.lookup_transform("map", "cam_front", convert.time_msg(START_NS + SECOND // 2))
    assert found.transform.translation.x == pytest.approx(5.0 + 4.0 + 1.5)


def test_who_comes_late_still_gets_the_latched(graph, bag):
    node = play(graph, bag, tail_s=10.0)
    wait_for(lambda: node._published > STEPS, "play to begin")
    late: list[TFMessage] = graph.listen(TFMessage, "/tf_static", qos.LATCHED)
    wait_for(lambda: late, "the latched transform")
    assert late[0].transforms[0].child_frame_id == "cam_front"


def test_a_loop_begins_again_with_time_jumping_back(graph, bag):
    odometry: list[Odometry] = graph.listen(Odometry, "odom")
    play(graph, bag, loop=True, tail_s=0.1, rate=4.0)
    wait_for(lambda: len(odometry) > 2 * STEPS, "the third pass")
    stamps = [convert.time_ns(message.header.stamp) for message in odometry[: STEPS + 1]]
    assert stamps[STEPS] == START_NS


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no bag at"),
        (lambda path: path.mkdir(), "is no bag: it has neither metadata.yaml nor an .mcap or .db3 file"),
        (lambda path: path.write_text("x"), "is no bag: wanted a folder with metadata.yaml"),
    ],
)
def test_without_a_bag_it_ends_and_says_why(tmp_path, make, said):
    path = tmp_path / "nothing"
    make(path)
    done = subprocess.run(
        ["ros2", "run", "sparseoccvla", "replay_node", "--ros-args", "-p", f"bag:={path}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stdout + done.stderr


def test_a_damaged_bag_ends_with_the_reason(bag):
    recording = next(bag.glob("*.mcap"))
    recording.write_bytes(recording.read_bytes()[:-2000])
    done = subprocess.run(
        ["ros2", "run", "sparseoccvla", "replay_node", "--ros-args", "-p", f"bag:={bag}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is damaged or not a rosbag2 bag" in done.stdout + done.stderr
