"""Diagnostics, throttled complaints, and the answer to "why does nothing happen?".

Timers here run on the steady clock: a node that waits for /clock must still be able to say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock

from diagnostic_msgs.msg import DiagnosticStatus
from diagnostic_updater import Updater
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from sparseoccvla.config import WatchConfig

_REPEAT_S = 5.0  # a lasting fault is logged this often


def steady_clock() -> Clock:
    """A clock of its own for each timer: rcl warns when many timers share one."""
    return Clock(clock_type=ClockType.STEADY_TIME)


class Level(IntEnum):
    OK = 0
    WARN = 1
    ERROR = 2


@dataclass
class _Fault:
    level: Level
    text: str
    since_s: float
    last_s: float
    logged_s: float
    count: int = 1


class Health:
    """The health of one node: faults that come and go, facts and counters, published once a second.

    `raise_fault` may be called from any thread. A fault that is not raised again for `expires_s` or is
    cleared is over; one shorter than `tolerated_s` is logged and counted but is no diagnosis.
    """

    def __init__(self, node: Node, watch: WatchConfig, facts: Callable[[], Mapping[str, object]]) -> None:
        self._node = node
        self._watch = watch
        self._facts = facts
        self._faults: dict[str, _Fault] = {}
        self._lock = Lock()
        self._updater = Updater(node)
        self._updater.timer.cancel()
        self._updater.setHardwareID("none")
        self._updater.add("status", self._report)
        self._timer = node.create_timer(1.0, self._updater.update, clock=steady_clock())

    def raise_fault(self, key: str, level: Level, text: str) -> None:
        """Note that `key` is wrong now; logs it when new, then at most every few seconds with a count."""
        now = time.monotonic()
        with self._lock:
            fault = self._faults.get(key)
            if fault is None:
                fault = self._faults[key] = _Fault(level, text, now, now, 0.0, 0)
            fault.level, fault.text, fault.last_s = level, text, now
            fault.count += 1
            speak = now - fault.logged_s >= _REPEAT_S
            if speak:
                fault.logged_s = now
            count = fault.count
        if speak:
            logger = self._node.get_logger()
            line = text if count == 1 else f"{text} ({count} times)"
            # Two calls: rclpy ties a severity to the line that logs.
            if level is Level.ERROR:
                logger.error(line)
            else:
                logger.warning(line)

    def clear(self, key: str) -> None:
        """Note that `key` is well again."""
        with self._lock:
            self._faults.pop(key, None)

    def expire(self, seconds: float) -> None:
        """Forget faults not raised again for `seconds`."""
        limit = time.monotonic() - seconds
        with self._lock:
            for key in [key for key, fault in self._faults.items() if fault.last_s < limit]:
                del self._faults[key]

    def publish(self) -> None:
        """Publish now, out of turn."""
        self._updater.update()

    def _report(self, status: DiagnosticStatus) -> DiagnosticStatus:
        self.expire(_REPEAT_S)
        now = time.monotonic()
        with self._lock:
            lasting = [
                fault
                for fault in self._faults.values()
                if fault.level is Level.ERROR or now - fault.since_s >= self._watch.tolerated_s
            ]
            worst = max((fault.level for fault in lasting), default=Level.OK)
            text = "; ".join(fault.text for fault in sorted(lasting, key=lambda f: -f.level)) or "ok"
        status.summary(bytes([worst]), text)
        for name, value in self._facts().items():
            status.add(name, str(value))
        return status


@dataclass
class _Input:
    topic: str
    type_name: str
    qos: QoSProfile
    seen: bool = False


class InputWatch:
    """Says which topics a node still waits for, and why nothing comes on them."""

    def __init__(self, node: Node, watch: WatchConfig, hint: str) -> None:
        self._node = node
        self._hint = hint
        self._inputs: dict[str, _Input] = {}
        self._timer = node.create_timer(watch.report_after_s, self.report, clock=steady_clock())

    def expect(self, topic: str, message_type: type, qos: QoSProfile) -> None:
        """Name an input; `topic` is relative, as the node subscribes it."""
        # "pkg.msg._name" and "Name" -> "pkg/msg/Name"
        package = message_type.__module__.split(".")[0]
        resolved = self._node.resolve_topic_name(topic)
        self._inputs[topic] = _Input(resolved, f"{package}/msg/{message_type.__name__}", qos)

    def seen(self, topic: str) -> None:
        self._inputs[topic].seen = True

    def stop(self) -> None:
        self._node.destroy_timer(self._timer)

    def missing(self) -> list[str]:
        """One sentence for each input that never came."""
        lines = []
        for wanted in self._inputs.values():
            if wanted.seen:
                continue
            publishers = self._node.get_publishers_info_by_topic(wanted.topic)
            foreign = sorted({p.topic_type for p in publishers} - {wanted.type_name})
            unfit = [
                reason
                for p in publishers
                for verdict, reason in [qos_check_compatible(p.qos_profile, wanted.qos)]
                if verdict == QoSCompatibility.ERROR
            ]
            if foreign:
                why = f"is published as {', '.join(foreign)}, wanted {wanted.type_name}"
            elif unfit:
                why = f"is published with a QoS that does not fit: {unfit[0].strip()}"
            elif publishers:
                why = "has a publisher that has sent nothing yet"
            else:
                why = f"({wanted.type_name}) has no publisher"
            lines.append(f"{wanted.topic} {why}")
        return lines

    def report(self) -> None:
        lines = self.missing()
        clock = self._node.get_clock()
        if clock.ros_time_is_active and clock.now().nanoseconds == 0:
            lines.append("/clock is silent while use_sim_time is true: play the bag with --clock")
        if lines:
            self._node.get_logger().warning(
                "still waiting: " + "; ".join(lines) + (f". {self._hint}" if self._hint else "")
            )
