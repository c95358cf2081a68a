"""Why nothing happens: each node can tell a missing topic from a wrong type or a QoS that can't match."""

from __future__ import annotations

import time

from conftest import wait_for
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from sparseoccvla_msgs.msg import DrivingCommand

from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.planner_node import PlannerNode
from sparseoccvla_ros.rig import Rig


def test_it_names_topics_of_another_type_and_of_a_qos_that_does_not_fit(graph):
    node = graph.add(PlannerNode, backend="fake")
    graph.wait_active(node)
    wrong_type = graph.listener.create_publisher(Path, "odom", 1)
    volatile = QoSProfile(depth=1, durability=DurabilityPolicy.VOLATILE)  # commands must be latched
    wrong_qos = graph.listener.create_publisher(DrivingCommand, "command", volatile)

    def report() -> str:
        return "\n".join(node.inputs.missing())

    wait_for(lambda: "nav_msgs/msg/Path" in report() and "QoS" in report(), "both to be discovered")
    assert "/odom is published as nav_msgs/msg/Path, wanted nav_msgs/msg/Odometry" in report()
    assert "/command is published with a QoS that does not fit" in report()
    assert "/occupancy/queries (sparseoccvla_msgs/msg/OccupancyQueries) has no publisher" in report()
    for publisher in (wrong_type, wrong_qos):
        graph.listener.destroy_publisher(publisher)


def test_a_topic_that_has_sent_is_no_longer_missing(graph):
    node = graph.add(PlannerNode, backend="fake")
    graph.wait_active(node)
    assert any(line.startswith("/odom") for line in node.inputs.missing())
    rig = graph.add_plain(Rig())
    wait_for(lambda: rig.odom.get_subscription_count(), "odometry to be matched")
    rig.send_odometry(time.time_ns())
    wait_for(
        lambda: not any(line.startswith("/odom") for line in node.inputs.missing()), "odometry to be seen"
    )


def test_a_camera_in_an_unknown_frame_is_named_with_what_to_do(graph):
    diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
    node = graph.add(EncoderNode, backend="fake", camera__reliability="reliable")
    graph.wait_active(node)
    rig = graph.add_plain(Rig())
    wait_for(lambda: rig.infos["cam_front"].get_subscription_count(), "camera_info to be matched")

    def said() -> bool:
        message = rig.infos["cam_front"].msg_type(width=704, height=396)
        message.header.frame_id = "nowhere"
        rig.infos["cam_front"].publish(message)
        texts = [s.message for d in diagnostics for s in d.status]
        return any("no transform from nowhere to base_link for cam_front" in text for text in texts)

    wait_for(said, "the diagnosis")
    assert graph.state(node) == "active"
