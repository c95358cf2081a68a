"""The launch file as users run it: separate processes, killed nodes, every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import Drive, wait_for
from sensor_msgs.msg import PointCloud2
from sparseoccvla_msgs.msg import PlannedTrajectory, ReasoningText

from sparseoccvla_ros import convert, qos

REAL_DATA = os.environ.get("SPARSEOCCVLA_REAL_DATA", "")


def test_six_cameras_become_one_trajectory_for_each_set(graph, launch):
    launch("visualizer:=false")
    drive = Drive(graph)
    drive.wait_up()
    drive.rig.drive(4, 4.0)  # what comes before endpoints have met may be lost
    sent = drive.rig.drive(12, 4.0)
    wait_for(lambda: set(sent) <= drive.model_t0s(), "a trajectory for each of 12 sets")
    last = next(m for m in drive.trajectories if convert.time_ns(m.header.stamp) == max(sent))
    assert last.stamp_source == "cam_front"
    assert last.header.frame_id == "base_link"
    assert last.camera_age < 1.0


@pytest.mark.parametrize("victim", ["encoder_node", "planner_node", "guard_node"])
def test_a_killed_node_is_started_again_and_driving_goes_on(graph, launch, victim):
    launched = launch("visualizer:=false")
    drive = Drive(graph)
    drive.wait_up()
    drive.wait_driving()
    before = launched.pids(f"lib/sparseoccvla/{victim}")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: set(launched.pids(f"lib/sparseoccvla/{victim}")) - set(before), "the node to come back", 20
    )
    drive.wait_driving()


@pytest.mark.parametrize(
    ("what", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_however_launch_ends_nothing_is_left(graph, launch, what, to_group):
    launched = launch("visualizer:=false")
    Drive(graph).wait_up()
    assert len(launched.pids("lib/sparseoccvla/")) == 4
    if to_group:
        os.killpg(launched.process.pid, what)
    else:
        launched.process.send_signal(what)
    wait_for(lambda: launched.process.poll() is not None, "launch to end", 20)
    wait_for(lambda: not launched.pids(), "every process to end", 20)


def test_without_inputs_each_node_says_what_it_waits_for(launch):
    launched = launch("visualizer:=false")

    def said() -> bool:
        text = launched.log.read_text()
        return all(
            part in text
            for part in (
                "/cam_front/image_rect_compressed (sensor_msgs/msg/CompressedImage) has no publisher",
                "/occupancy/queries has a publisher that has sent nothing yet",
                "/plan/proposal has a publisher that has sent nothing yet",
                "Try `ros2 launch sparseoccvla full_stack.launch.py bag:=demo`",
            )
        )

    wait_for(said, f"the reports in {launched.log}", 40)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason="SPARSEOCCVLA_REAL_DATA is not set")
def test_a_real_keyframe_becomes_a_trajectory_a_cloud_and_words(graph, launch, tmp_path):
    bag = tmp_path / "bag"
    root = Path(REAL_DATA) / "real_frame"
    subprocess.run(
        ["sparseoccvla", "bag", "from-nuscenes", "--dataroot", root, "--scene", "scene-0061", "--out", bag],
        check=True, timeout=60, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    trajectories = graph.listen(PlannedTrajectory, "plan/trajectory")
    clouds = graph.listen(PointCloud2, "occupancy/points")
    words = graph.listen(ReasoningText, "reasoning/text", qos.STREAM)
    # One frame comes with 43 ms of odometry, which is lost half a second later: give a busy machine time.
    launched = launch("visualizer:=false", f"bag:={bag}", "rate:=0.2")
    cam_front_ns = 1_532_402_927_612_460_000

    def planned() -> bool:
        good = [m for m in trajectories if m.source == PlannedTrajectory.MODEL]
        return cam_front_ns in {convert.time_ns(m.header.stamp) for m in good}

    log = f"a trajectory with the stamp of CAM_FRONT, see {launched.log}"
    wait_for(planned, log, 60)
    cloud = wait_for(lambda: clouds, "an occupancy cloud")[0]
    assert convert.time_ns(cloud.header.stamp) == cam_front_ns
    text = wait_for(lambda: [m for m in words if m.finished], "a reasoning text")[0]
    assert convert.time_ns(text.header.stamp) == cam_front_ns
