"""From node to node inside one process: what one made is given to the next as it is.

rclpy has no intra-process communication: between nodes of one process a message is serialized twice and
goes through DDS. A hand-off takes the place of such a topic between our own nodes; the topic stays, for
everybody outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseoccvla.contracts import OccupancyQueries, Reasoning

if TYPE_CHECKING:
    from rclpy.node import Node


@dataclass(frozen=True)
class Encoded:
    """What OccupancyQueries.msg tells the stages behind."""

    queries: OccupancyQueries
    stage_id: str
    sequence: int
    stamp_source: str  # the camera whose stamp is t0
    history_ns: tuple[int, ...]  # newest first, 0 where masked
    all_cameras: bool
    received_s: float  # steady clock: when the message came, or when it was handed over


@dataclass(frozen=True)
class Reasoned:
    """What ReasoningTokens.msg tells the planner."""

    reasoning: Reasoning
    model_id: str


class HandOff[Item]:
    """One giving node, any number of taking ones. Nothing is copied: takers only read what they get."""

    def __init__(self) -> None:
        self._takers: dict[Node, Callable[[Item], None]] = {}

    def connect(self, node: Node, take: Callable[[Item], None]) -> None:
        """Call `take` in the executor of `node`, as for a message; it must not raise."""
        self._takers[node] = take

    def disconnect(self, node: Node) -> None:
        """What was given just before may still come."""
        del self._takers[node]

    def give(self, item: Item) -> None:
        """Hand over to every taker and go on; from any thread."""
        for node, take in list(self._takers.items()):
            if (executor := node.executor) is not None:
                executor.create_task(take, item)
