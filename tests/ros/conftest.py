"""Nodes in one process, spun in the background, on real DDS. Needs a ROS environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
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
