"""Records what the stack publishes, as raw CDR, into a rosbag2 bag."""

from __future__ import annotations

from collections import Counter
from queue import SimpleQueue
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from rclpy.node import Node
from sparseoccvla_msgs.msg import (
    OccupancyForecast,
    OccupancyQueries,
    PlannedTrajectory,
    PlanProposal,
    ReasoningText,
    ReasoningTokens,
    SparseOccupancy,
    StackInfo,
)

from sparseoccvla.data.bag import BagWriter, RawMessage
from sparseoccvla.data.messages import LATCHED_QOS, STREAM_QOS
from sparseoccvla_ros import qos

OUTPUTS = {
    "/info": StackInfo,
    "/occupancy/queries": OccupancyQueries,
    "/occupancy/voxels": SparseOccupancy,
    "/occupancy/forecast": OccupancyForecast,
    "/reasoning/tokens": ReasoningTokens,
    "/reasoning/text": ReasoningText,
    "/plan/proposal": PlanProposal,
    "/plan/trajectory": PlannedTrajectory,
    "/plan/path": Path,
    "/diagnostics": DiagnosticArray,
}


class Recorder:
    """Subscribes every output of the stack; `drain` writes what came to a bag.

    Callbacks only queue: a disk that stalls must not cost a message.
    """

    def __init__(self, node: Node) -> None:
        self.counts: Counter[str] = Counter()
        self._node = node
        self._came: SimpleQueue[RawMessage] = SimpleQueue()
        self._untimed: list[RawMessage] = []  # came before /clock ran
        for topic, kind in OUTPUTS.items():
            profile = qos.LATCHED_ALL if topic == "/info" else qos.STREAM
            node.create_subscription(kind, topic, self._keeper(topic), profile, raw=True)

    def _keeper(self, topic: str) -> Any:
        def keep(data: bytes) -> None:
            self.counts[topic] += 1
            # Bag time, so that the output can be played beside its input.
            stamp_ns = self._node.get_clock().now().nanoseconds
            self._came.put(RawMessage(topic, stamp_ns, bytes(data)))

        return keep

    def announce(self, writer: BagWriter) -> None:
        """Declare the topics of a bag that is about to be written."""
        for topic, kind in OUTPUTS.items():
            name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
            writer.add_topic(topic, name, LATCHED_QOS if topic == "/info" else STREAM_QOS)

    def drain(self, writer: BagWriter) -> None:
        """Write everything that has come; what came before /clock ran gets the clock's first time."""
        while not self._came.empty():
            message = self._came.get()
            if message.stamp_ns == 0:
                self._untimed.append(message)
                continue
            for early in self._untimed:
                writer.write_raw(early._replace(stamp_ns=message.stamp_ns))
            self._untimed.clear()
            writer.write_raw(message)
