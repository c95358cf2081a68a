"""Handing over inside one process: the same object, in the taker's executor, and nobody else's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparseoccvla_ros.hand_off import HandOff


class Executor:
    """Keeps tasks until they are run, as an executor does."""

    def __init__(self) -> None:
        self.tasks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def create_task(self, callback: Callable[..., None], *args: Any) -> None:
        self.tasks.append((callback, args))

    def run(self) -> None:
        while self.tasks:
            callback, args = self.tasks.pop(0)
            callback(*args)


class Node:
    def __init__(self, executor: Executor | None = None) -> None:
        self.executor = executor or Executor()


def test_each_taker_gets_the_very_object_in_its_own_executor():
    hand_off: HandOff[object] = HandOff()
    nodes, got = [Node(), Node()], [[], []]
    for node, taken in zip(nodes, got, strict=True):
        hand_off.connect(node, taken.append)
    hand_off.give(item := object())
    assert got == [[], []], "taken in the giver's thread"
    nodes[1].executor.run()
    assert got == [[], [item]]
    nodes[0].executor.run()
    assert got[0][0] is got[1][0] is item


def test_items_come_in_the_order_in_which_they_were_given():
    hand_off: HandOff[int] = HandOff()
    node, taken = Node(), []
    hand_off.connect(node, taken.append)
    for i in range(5):
        hand_off.give(i)
    node.executor.run()
    assert taken == list(range(5))


def test_who_has_left_gets_nothing_and_the_others_go_on():
    hand_off: HandOff[int] = HandOff()
    left, stays = Node(), Node()
    got_left, got = [], []
    hand_off.connect(left, got_left.append)
    hand_off.connect(stays, got.append)
    hand_off.disconnect(left)
    hand_off.give(1)
    left.executor.run()
    stays.executor.run()
    assert (got_left, got) == ([], [1])


def test_a_node_that_nobody_spins_any_more_is_no_error():
    hand_off: HandOff[int] = HandOff()
    node = Node()
    node.executor = None  # as rclpy says once its executor is gone
    hand_off.connect(node, lambda _: None)
    hand_off.give(1)
