"""Plays a rosbag2 bag with /clock, where `ros2 bag` is not at hand: raw CDR, rate, loop.

The schedule is `sparseoccvla.data.replay`; here it meets a clock and publishers. The process ends when
the bag does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import rclpy
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from rosidl_runtime_py.utilities import get_message
from sparseoccvla_msgs.msg import StackInfo

from sparseoccvla.config import ReplayConfig
from sparseoccvla.data.bag import BagReader, Topic
from sparseoccvla.data.replay import Span, pass_length_s, plan_pass
from sparseoccvla.errors import InputError
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.health import Level
from sparseoccvla_ros.stage_node import StageNode, spin

_SETTLE_S = 0.5
_PAUSED_TICK_S = 0.05  # while waiting time stands still, but there is one
_GLOBAL_TOPICS = ("/tf", "/tf_static", "/clock")


class ReplayNode(StageNode):
    """Publishes what a bag holds when it is due. Must not itself use sim time: it makes it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("replay_node", **kwargs)
        self._player: Thread | None = None
        self._stop = Event()
        self._stages_up: set[str] = set()
        self._published = 0
        self._late_s = 0.0

    def declare(self) -> None:
        self.settings = params.declare(self, ReplayConfig)

    def configure(self) -> None:
        if self.get_parameter("use_sim_time").value:
            raise InputError(
                "replay_node got use_sim_time true, but it is what publishes /clock; set it false"
            )
        if not self.settings.bag:
            raise InputError("replay_node has no bag; set the parameter `bag` to the folder of one")
        self._path = Path(self.settings.bag).expanduser()
        with BagReader(self._path) as bag:
            self._span = Span.of(bag.start_ns, bag.end_ns, self.settings)
            topics = bag.topics
        self._clock_ticks = self.create_lifecycle_publisher(Clock, "/clock", qos.RESULT)
        self._outputs: dict[str, Publisher] = {}
        for topic in topics.values():
            self._add_output(topic)
        self._latched = [name for name, topic in topics.items() if topic.latched and name in self._outputs]

    def _add_output(self, topic: Topic) -> None:
        if topic.name == "/clock":
            return  # ours is the one that fits the rate
        try:
            kind = get_message(topic.type)
        except (AttributeError, ModuleNotFoundError, ValueError):
            self.get_logger().warning(
                f"{topic.name} is left out: this machine has no message type {topic.type}; "
                "install its package"
            )
            return
        # Relative, so that a namespace or a remapping of launch reaches it.
        name = topic.name if topic.name in _GLOBAL_TOPICS else topic.name.removeprefix("/")
        profile = qos.LATCHED if topic.latched else qos.STREAM
        self._outputs[topic.name] = self.create_lifecycle_publisher(kind, name, profile)

    def activate(self) -> None:
        self._stop.clear()
        if self.settings.wait_for:
            self.subscribe(StackInfo, "info", self._on_info, qos.LATCHED_ALL, awaited=False)
        self._player = Thread(target=self._play, name="player", daemon=True)
        self._player.start()

    def deactivate(self) -> None:
        self._stop.set()
        if self._player is not None:
            self._player.join(5.0)
            self._player = None

    def failed_to_start(self) -> None:
        """A player without a bag is of no use; whoever launched it should know."""
        self.exit_code = 2
        rclpy.try_shutdown()

    def facts(self) -> Mapping[str, object]:
        return {"messages published": self._published, "latest by": f"{self._late_s:.3f} s"}

    def _on_info(self, message: StackInfo) -> None:
        self._stages_up.add(message.stage)

    # Player thread -------------------------------------------------------------------------------

    def _play(self) -> None:
        try:
            self._wait_for_stages()
            self._wait_for_subscribers()
            passes = 0
            while not self._stop.is_set() and (passes == 0 or self.settings.loop):
                self._play_once()
                passes += 1
        except InputError as error:
            self.health.raise_fault("play", Level.ERROR, str(error))
            self.exit_code = 2
        self.get_logger().info(f"{self._published} messages played, at most {self._late_s * 1e3:.0f} ms late")
        if not self._stop.is_set():
            rclpy.try_shutdown()

    def _wait_for_stages(self) -> None:
        deadline = time.monotonic() + self.settings.wait_s
        wanted = set(self.settings.wait_for)
        while not wanted <= self._stages_up and not self._stop.wait(_PAUSED_TICK_S):
            self._tick(self._span.start_ns)
            if time.monotonic() > deadline:
                raise InputError(
                    f"no sign of {', '.join(sorted(wanted - self._stages_up))} after "
                    f"{self.settings.wait_s:g} s, so the bag is not played; look at their log, "
                    "or set wait_for to []"
                )

    def _wait_for_subscribers(self) -> None:
        """Until nobody new has subscribed for a while: what is sent before a match is lost."""
        settled_s = time.monotonic()
        counts: list[int] = []
        while time.monotonic() - settled_s < _SETTLE_S and not self._stop.wait(_PAUSED_TICK_S):
            self._tick(self._span.start_ns)
            now = [output.get_subscription_count() for output in self._outputs.values()]
            if now != counts:
                settled_s, counts = time.monotonic(), now

    def _tick(self, bag_time_ns: int) -> None:
        self._clock_ticks.publish(Clock(clock=convert.time_msg(bag_time_ns)))

    def _play_once(self) -> None:
        start = time.monotonic()
        with BagReader(self._path) as bag:
            for due in plan_pass(self._span, self.settings, self._latched, bag.messages):
                wait_s = start + due.after_s - time.monotonic()
                if wait_s > 0 and self._stop.wait(wait_s):
                    return
                self._late_s = max(self._late_s, -wait_s)
                if due.message is None:
                    self._tick(due.clock_ns)
                elif due.message.topic in self._outputs:
                    self._outputs[due.message.topic].publish(due.message.data)
                    self._published += 1
        self._stop.wait(max(0.0, start + pass_length_s(self._span, self.settings) - time.monotonic()))


def main() -> int:
    return spin(ReplayNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
