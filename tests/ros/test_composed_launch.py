"""`composed:=true` as users run it: from outside nobody can tell it from separate processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Drive, Graph, wait_for
from rclpy.parameter import parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from sparseoccvla_msgs.msg import PlannedTrajectory, PlanProposal

from sparseoccvla.data.camera_sets import count_camera_sets
from sparseoccvla.data.drive import write_drive
from sparseoccvla.data.nuscenes_drive import scene_drive
from sparseoccvla.data.tables import Tables
from sparseoccvla_ros import convert, qos
from tests.nuscenes_root import make_root

STAGE_NODES = ("encoder_node", "planner_node", "reasoner_node")
INNER = {
    ("planner_node", "occupancy/queries"),
    ("planner_node", "reasoning/tokens"),
    ("reasoner_node", "occupancy/queries"),
}

pytestmark = pytest.mark.slow


def parameters_of(graph: Graph, node: str) -> dict[str, Any]:
    """Every parameter of a node by name."""
    client = AsyncParameterClient(graph.listener, node)
    assert client.wait_for_services(20.0), f"{node} answers nobody"

    def answer(future: Any) -> Any:
        wait_for(future.done, f"{node} to answer")
        return future.result()

    names = sorted(answer(client.list_parameters()).result.names)
    values = answer(client.get_parameters(names)).values
    return {name: parameter_value_to_python(value) for name, value in zip(names, values, strict=True)}


def endpoints(by_node: Callable, namespace: str) -> set[tuple[str, str, str]]:
    """(node, topic within the namespace, type) as ROS tells by node."""
    return {
        (node, topic.removeprefix(f"{namespace}/"), kind)
        for node in STAGE_NODES
        for topic, kinds in by_node(node, namespace)
        for kind in kinds
    }


def settled(read: Callable[[], object], quiet_s: float = 3.0) -> None:
    """Wait until what is read stays as it is: discovery tells of endpoints one by one."""
    last, since_s = read(), time.monotonic()
    while time.monotonic() - since_s < quiet_s:
        time.sleep(0.2)
        now = read()
        if now != last:
            last, since_s = now, time.monotonic()


def outside_of(graph: Graph, namespace: str) -> dict[str, Any]:
    """What can be seen of the three nodes once they are active."""
    listener = graph.listener
    publishers = listener.get_publisher_names_and_types_by_node
    infos = f"{namespace}/info"
    wait_for(lambda: len(listener.get_publishers_info_by_topic(infos)) == 3, "three stages", 60)
    wait_for(lambda: listener.get_publishers_info_by_topic(f"{namespace}/plan/trajectory"), "the guard", 30)
    wait_for(lambda: set(STAGE_NODES) <= set(listener.get_node_names()), "their names")
    subscribers = listener.get_subscriber_names_and_types_by_node
    settled(lambda: endpoints(subscribers, namespace))
    return {
        "nodes": sorted(
            name for name, space in listener.get_node_names_and_namespaces() if space == namespace
        ),
        "published": endpoints(publishers, namespace),
        "subscribed": endpoints(subscribers, namespace),
        "services": endpoints(listener.get_service_names_and_types_by_node, namespace),
        "parameters": {name: parameters_of(graph, f"{namespace}/{name}") for name in STAGE_NODES},
        "topics": sorted(listener.get_topic_names_and_types()),
    }


def test_nodes_topics_types_services_and_parameters_are_those_of_separate_nodes(graph, launch, tmp_path):
    # What a file says of one node, of all, and what launch says against it.
    file = tmp_path / "vehicle.yaml"
    file.write_text(
        "/**: {ros__parameters: {watch.tolerated_s: 3.0}}\n"
        "/car/planner_node: {ros__parameters: {backend: torch, seed: 5}}"
    )
    arguments = (
        "namespace:=car",
        f"params_file:={file}",
        "reasoning_policy:=same_frame",
        "camera_reliability:=reliable",
        "visualizer:=false",
    )
    separate = launch(*arguments)
    seen = outside_of(graph, "/car")
    assert len(separate.pids("lib/sparseoccvla/")) == 4
    separate.end()
    wait_for(lambda: not graph.listener.get_publishers_info_by_topic("/car/info"), "the nodes to be gone", 30)
    composed = launch(*arguments, "composed:=true")
    now = outside_of(graph, "/car")
    assert len(composed.pids("lib/sparseoccvla/")) == 2
    heard = {(node, topic) for node, topic, _ in seen["subscribed"] - now["subscribed"]}
    assert heard == INNER, "what composed nodes do not hear"
    assert now["subscribed"] < seen["subscribed"]
    for what in ("nodes", "published", "services", "parameters", "topics"):
        assert now[what] == seen[what], what
    planner = now["parameters"]["planner_node"]
    assert (planner["backend"], planner["seed"], planner["reasoning.policy"]) == ("fake", 5, "same_frame")
    encoder = now["parameters"]["encoder_node"]
    assert (encoder["camera.reliability"], encoder["watch.tolerated_s"]) == ("reliable", 3.0)


def test_every_set_of_a_replayed_drive_becomes_a_trajectory_with_its_stamp(graph, launch, tmp_path):
    bag, file = tmp_path / "drive", tmp_path / "patient.yaml"
    root = make_root(tmp_path / "root", keyframes=8, sweeps=False)
    write_drive(scene_drive(Tables(root), "scene-0001").drive, bag)
    # On a busy machine the pictures of a set may come far apart.
    file.write_text(json.dumps({"encoder_node": {"ros__parameters": {"sync.deadline_s": 2.0}}}))
    sets = sorted(count_camera_sets(bag).complete_t0_ns)
    proposals = graph.listen(PlanProposal, "plan/proposal", qos.STREAM)
    trajectories = graph.listen(PlannedTrajectory, "plan/trajectory", qos.STREAM)
    arguments = (f"bag:={bag}", f"params_file:={file}", "rate:=0.5", "exit_with_bag:=true")
    launched = launch("composed:=true", "visualizer:=false", *arguments)
    wait_for(lambda: launched.process.poll() is not None, f"the bag to end, see {launched.log}", 120)
    assert len(sets) == 8
    assert [convert.time_ns(m.header.stamp) for m in proposals] == sets
    driven = [convert.time_ns(m.header.stamp) for m in trajectories if m.source == PlannedTrajectory.MODEL]
    # Odometry begins with the first set, so that its plan starts from a speed that nobody knew.
    assert driven == sets[1:]


def test_the_killed_process_is_started_again_and_driving_goes_on(graph, launch):
    launched = launch("composed:=true", "visualizer:=false")
    drive = Drive(graph)
    drive.wait_up()
    drive.wait_driving()
    before = launched.pids("lib/sparseoccvla/composed_nodes")
    assert len(before) == 1
    os.kill(before[0], signal.SIGKILL)
    wait_for(
        lambda: set(launched.pids("lib/sparseoccvla/composed_nodes")) - set(before),
        "the process to come back",
        20,
    )
    drive.wait_driving()


def test_without_the_reasoner_two_nodes_are_composed(graph, launch):
    launched = launch("composed:=true", "reasoner:=off", "visualizer:=false")
    wait_for(lambda: len(graph.listener.get_publishers_info_by_topic("/info")) == 2, "two stages", 60)
    assert len(launched.pids("lib/sparseoccvla/composed_nodes")) == 1
    assert "reasoner_node" not in graph.listener.get_node_names()
    policy = parameters_of(graph, "/planner_node")["reasoning.policy"]
    assert policy == "off"
