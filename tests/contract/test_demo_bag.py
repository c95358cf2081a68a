"""The synthetic drive as a bag, and what a summary makes of a run over it; rosbags alone, no ROS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, Source
from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagReader, BagWriter, RawMessage
from sparseoccvla.data.camera_sets import count_camera_sets
from sparseoccvla.data.cli import make_demo_bag
from sparseoccvla.data.messages import STREAM_QOS, camera_topics, typestore
from sparseoccvla.summary import TRAJECTORIES, pictures_at, summarize

pytestmark = pytest.mark.slow

SECONDS, RATE_HZ = 1.0, 4.0


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "drive"
    assert make_demo_bag(path, SECONDS, seed=0, rate_hz=RATE_HZ) == 24
    return path


def test_it_holds_complete_sets_and_all_that_they_need(bag):
    assert len(count_camera_sets(bag).complete_t0_ns) == 4
    with BagReader(bag) as reader:
        wanted = {"/tf", "/tf_static", "/odom", "/command", "/ground_truth/trajectory", "/ground_truth/boxes"}
        assert wanted <= set(reader.topics)
        assert reader.topics["/tf_static"].latched
        assert reader.topics["/command"].latched
        command = reader.decode(next(reader.messages(["/command"])))
        assert command.source == "route"
        odometry = [reader.decode(message) for message in reader.messages(["/odom"])]
    stamps = np.array([messages.stamp_ns(message.header.stamp) for message in odometry])
    assert np.diff(stamps).max() <= NS_PER_S // 20
    moved = odometry[-1].pose.pose.position.x - odometry[0].pose.pose.position.x
    mean_speed = np.mean([message.twist.twist.linear.x for message in odometry])
    assert moved == pytest.approx(mean_speed * (stamps[-1] - stamps[0]) / NS_PER_S, rel=0.1, abs=0.1)


def test_each_picture_has_its_calibration_and_stamp(bag):
    with BagReader(bag) as reader:
        for name in CAMERA_NAMES:
            images, infos = (
                [reader.decode(message) for message in reader.messages([topic])]
                for topic in camera_topics(name)
            )
            assert [m.header for m in images] == [m.header for m in infos]
            assert (infos[0].width, infos[0].height) == (704, 396)
            assert {message.header.frame_id for message in images} == {name}


def test_the_same_seed_gives_the_same_pictures(bag, tmp_path):
    make_demo_bag(tmp_path / "again", SECONDS, seed=0, rate_hz=RATE_HZ)
    topic = camera_topics("cam_front")[0]
    with BagReader(bag) as one, BagReader(tmp_path / "again") as other:
        assert list(one.messages([topic])) == list(other.messages([topic]))


def write_run(path: Path, t0s: list[int], source: Source) -> None:
    types = typestore().types
    with BagWriter(path, {}) as writer:
        kind = "sparseoccvla_msgs/msg/PlannedTrajectory"
        writer.add_topic(TRAJECTORIES, kind, STREAM_QOS)
        for t0_ns in t0s:
            stamp = types["builtin_interfaces/msg/Time"](sec=t0_ns // NS_PER_S, nanosec=t0_ns % NS_PER_S)
            empty = types["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
            message = types[kind](
                header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="base_link"),
                provenance=types["sparseoccvla_msgs/msg/Provenance"](1, "", "", 0.002, []),
                source=int(source), stamp_source="cam_front", status=0, reason="", command=3, chosen=0,
                poses=[], velocity=np.zeros(0, np.float32), acceleration=np.zeros(0, np.float32),
                time_from_start=[], valid_until=empty, camera_age=0.1, reasoning_age=0.0,
            )  # fmt: skip
            data = typestore().serialize_cdr(message, kind)
            writer.write_raw(RawMessage(TRAJECTORIES, t0_ns, bytes(data)))


def test_a_summary_counts_only_plans_of_the_model_with_a_sets_own_stamp(bag, tmp_path):
    t0s = list(count_camera_sets(bag).complete_t0_ns)
    write_run(tmp_path / "good", t0s[:3], Source.MODEL)
    good = summarize(bag, tmp_path / "good")
    assert (good.camera_sets, good.trajectories, good.fallbacks) == (4, 3, 0)
    assert good.missed_t0_ns == (t0s[3],)
    assert good.share == 0.75
    assert good.latency_ms["age"].p50 == pytest.approx(100, abs=0.1)
    write_run(tmp_path / "restamped", [t0_ns + 1 for t0_ns in t0s], Source.MODEL)
    assert summarize(bag, tmp_path / "restamped").trajectories == 0
    write_run(tmp_path / "braking", t0s, Source.FALLBACK)
    braking = summarize(bag, tmp_path / "braking")
    assert (braking.trajectories, braking.fallbacks) == (0, 4)


def test_pictures_of_a_moment_are_those_of_its_set(bag):
    t0_ns = count_camera_sets(bag).complete_t0_ns[1]
    pictures = pictures_at(bag, t0_ns)
    assert set(pictures) == set(CAMERA_NAMES)
    assert pictures["cam_front"].shape == (396, 704, 3)
