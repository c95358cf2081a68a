"""Nodes in one process, spun in the background, or launched, on real DDS. Needs a ROS environment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

if find_spec("rclpy") is None:
    # `make test` runs this folder inside the ROS environment.
    collect_ignore_glob = ["*"]
else:
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.experimental import EventsExecutor
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from sparseoccvla_msgs.msg import PlannedTrajectory, StackInfo

    from sparseoccvla_ros import convert, qos
    from sparseoccvla_ros.rig import Rig

STAGES = {"encoder", "reasoner", "planner"}


class Graph:
    """Nodes of one test."""

    def __init__(self) -> None:
        rclpy.init()
        self.executor = EventsExecutor()
        self.nodes: list[Node] = []
        self.listener = self.add_plain(rclpy.create_node("listener"))
        self._thread = Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self.executor.spin()

    def add_plain(self, node: Node) -> Node:
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def add(self, make: Callable[..., Node], **parameters: Any) -> Node:
        """A node with parameters; `a__b` stands for the parameter a.b."""
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
        return self.add_plain(make(parameter_overrides=overrides))

    def listen(self, message_type: type, topic: str, profile: Any = 50) -> list[Any]:
        """Everything that comes on a topic, from now on."""
        messages: list[Any] = []
        self.listener.create_subscription(message_type, topic, messages.append, profile)
        return messages

    def state(self, node: Node) -> str:
        return node._state_machine.current_state[1]

    def wait_active(self, *nodes: Node) -> None:
        for node in nodes:
            wait_for(lambda node=node: self.state(node) == "active", f"{node.get_name()} to be active")

    def close(self) -> None:
        try:
            self.executor.shutdown()
            self._thread.join(5.0)
            for node in self.nodes:
                getattr(node, "close", node.destroy_node)()
        finally:
            rclpy.try_shutdown()


class Launched:
    """`ros2 launch` in a process group of its own; its processes are known by a mark in their environment."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        command = ["ros2", "launch", "sparseoccvla", "full_stack.launch.py", "backend:=fake", *arguments]
        environment = {**os.environ, "SPARSEOCCVLA_TEST_MARK": self.mark}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def pids(self, name: str = "") -> list[int]:
        """Living processes of this launch whose command line contains `name`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marked and command and name in command:
                found.append(int(folder.name))
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(15)
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)


class Drive:
    """A rig, the launched stack, and what leaves it."""

    def __init__(self, graph: Graph) -> None:
        self.trajectories: list[PlannedTrajectory] = graph.listen(PlannedTrajectory, "plan/trajectory")
        self.infos: list[StackInfo] = graph.listen(StackInfo, "info", qos.LATCHED_ALL)
        self.rig = graph.add_plain(Rig())

    def wait_up(self) -> None:
        wait_for(lambda: {info.stage for info in self.infos} >= STAGES, "every stage", 60)
        wait_for(lambda: self.rig.images["cam_back"].get_subscription_count(), "the encoder to be matched")
        wait_for(lambda: self.trajectories, "the guard")

    def model_t0s(self) -> set[int]:
        good = [m for m in self.trajectories if m.source == PlannedTrajectory.MODEL]
        return {convert.time_ns(message.header.stamp) for message in good}

    def wait_driving(self, timeout_s: float = 40.0) -> None:
        """Drive until a set comes back as a trajectory of the model."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            sent = self.rig.drive(4, 4.0)
            time.sleep(0.2)
            if self.model_t0s() & set(sent):
                return
        pytest.fail(f"no trajectory of the model within {timeout_s:g} s")


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """The condition's value once it is true; fails by name after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.01)
    return value


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


@pytest.fixture
def launch(tmp_path) -> Iterator:
    started: list[Launched] = []

    def start(*arguments: str) -> Launched:
        started.append(Launched(tmp_path / f"launch_{len(started)}.log", *arguments))
        return started[-1]

    yield start
    for launched in started:
        launched.end()
