"""The quality of service of every topic, in one place.

We publish RELIABLE and ask for BEST_EFFORT from sensors, so that any driver matches; results keep
only the newest, and what a late joiner must know is latched. Sensor subscriptions can be overridden
(`camera_qos`), because a bag on a loaded loopback is better served RELIABLE.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability
    )


# A set arrives as a burst; more than one picture of a camera in the queue is a picture too late.
CAMERA_DEPTH = 4
ODOM_DEPTH = 100

RESULT = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
# For readers of `info`: three nodes latch one message each there, and a depth is shared by all writers.
LATCHED_ALL = _profile(20, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
STREAM = _profile(50, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
ODOM = _profile(ODOM_DEPTH, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)


def camera(reliability: str) -> QoSProfile:
    """What a camera subscription asks for: "best_effort" or "reliable"."""
    return _profile(CAMERA_DEPTH, ReliabilityPolicy[reliability.upper()], DurabilityPolicy.VOLATILE)
