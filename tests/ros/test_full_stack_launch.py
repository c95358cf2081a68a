"""The launch file under launch_testing: the graph comes up, drives, and every process ends cleanly."""

from __future__ import annotations

import time
import unittest

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
import pytest
import rclpy
from ament_index_python.packages import get_package_share_directory
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from rclpy.executors import SingleThreadedExecutor
from sparseoccvla_msgs.msg import PlannedTrajectory, StackInfo

from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.rig import Rig

ARGUMENTS = {"backend": "fake", "visualizer": "false", "respawn": "false"}


@pytest.mark.launch_test
def generate_test_description():
    path = get_package_share_directory("sparseoccvla") + "/launch/full_stack.launch.py"
    stack = IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=ARGUMENTS.items())
    return launch.LaunchDescription([stack, launch_testing.actions.ReadyToTest()])


class TestDriving(unittest.TestCase):
    def setUp(self):
        rclpy.init()
        self.rig = Rig()
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.rig)

    def tearDown(self):
        self.executor.shutdown()
        self.rig.destroy_node()
        rclpy.try_shutdown()

    def spin_until(self, condition, timeout_s):
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)
        return condition()

    def test_a_camera_set_becomes_a_trajectory_with_its_stamp(self):
        planned: set[int] = set()
        stages: set[str] = set()

        def on_plan(message: PlannedTrajectory) -> None:
            if message.source == PlannedTrajectory.MODEL:
                planned.add(convert.time_ns(message.header.stamp))

        self.rig.create_subscription(PlannedTrajectory, "plan/trajectory", on_plan, qos.STREAM)
        self.rig.create_subscription(StackInfo, "info", lambda m: stages.add(m.stage), qos.LATCHED_ALL)
        assert self.spin_until(lambda: stages >= {"encoder", "reasoner", "planner"}, 60), stages
        deadline = time.monotonic() + 30
        sent: set[int] = set()
        while not planned & sent and time.monotonic() < deadline:
            sent.update(self.rig.drive(2, 4.0))
            self.spin_until(lambda: not planned.isdisjoint(sent), 1.0)
        assert planned & sent


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_every_process_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info, allowable_exit_codes=[0, -2])
