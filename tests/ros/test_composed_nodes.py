"""The three nodes composed: what they tell each other stays inside, everything else is as ever."""

from __future__ import annotations

import time

import numpy as np
import pytest
from conftest import Graph, wait_for
from diagnostic_msgs.msg import DiagnosticArray
from sparseoccvla_msgs.msg import OccupancyQueries, PlanProposal, ReasoningTokens

from sparseoccvla.contracts import CAMERA_NAMES, CameraSet, CameraSlot, CameraState, PlanStatus, Reasoning
from sparseoccvla.contracts import OccupancyQueries as Queries
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.composed_nodes import composed_nodes
from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.planner_node import PlannerNode
from sparseoccvla_ros.reasoner_node import ReasonerNode
from sparseoccvla_ros.rig import Rig

SEPARATE = (EncoderNode, PlannerNode, ReasonerNode)
SECOND = 1_000_000_000


class Stack:
    """Encoder, planner and reasoner on the fake backend; parameters for one node by its position."""

    def __init__(
        self, graph: Graph, makers, reasoner: dict | None = None, planner: dict | None = None
    ) -> None:
        self._next_ns = 0
        self.proposals: list[PlanProposal] = graph.listen(PlanProposal, "plan/proposal")
        every_set = {"reasoner__max_rate_hz": 20.0, "reasoner__question": ""}
        # On a busy machine the pictures of a set may be far apart.
        patient = {"camera__reliability": "reliable", "sync__deadline_s": 2.0}
        own = (patient, planner or {}, every_set | (reasoner or {}))
        nodes = [graph.add(make, backend="fake", **p) for make, p in zip(makers, own, strict=False)]
        self.encoder, self.planner = nodes[:2]
        self.reasoner = nodes[2] if len(nodes) > 2 else None
        graph.wait_active(self.encoder, self.planner)
        self.rig = graph.add_plain(Rig())
        wait_for(lambda: self.rig.images["cam_back"].get_subscription_count(), "the rig to be matched")
        wait_for(lambda: self.rig.odom.get_subscription_count() == 2, "odometry to be matched")
        wait_for(lambda: self.encoder.tf.can_transform("base_link", "cam_back", convert.Time()), "transforms")

    def drive(self, sets: int) -> list[int]:
        """Send sets, each after the plan and the token for the one before."""
        start = max(time.time_ns() - sets * SECOND // 4, self._next_ns)
        self._next_ns = start + sets * SECOND // 4
        t0s = [start + i * SECOND // 4 for i in range(sets)]
        for t0_ns in t0s:
            wanted = self.prefills() + self.reasons()
            self.rig.send_set(t0_ns)
            wait_for(lambda t0_ns=t0_ns: t0_ns in self.planned(), "the plan of a set")
            wait_for(lambda wanted=wanted: self.prefills() >= wanted, "the token of a set")
        return t0s

    def reasons(self) -> bool:
        return self.reasoner is not None and self.reasoner.worker is not None

    def prefills(self) -> int:
        return self.reasoner.worker.done if self.reasons() else 0

    def planned(self) -> list[int]:
        return [convert.time_ns(message.header.stamp) for message in self.proposals]


def forged(encoder: EncoderNode, t0_ns: int) -> OccupancyQueries:
    """Queries as the encoder would send them."""
    slots = tuple(CameraSlot(name, CameraState.FRESH, t0_ns) for name in CAMERA_NAMES)
    origin = convert.provenance(encoder.stage.encoder.info, 1, 0.0)
    camera_set = CameraSet(t0_ns, CAMERA_NAMES[0], slots)
    return convert.queries_msg(Queries.fake(t0_ns), origin, camera_set, (), False)


def results_of(target: object, name: str) -> list:
    """What the method `name` of `target` returns from now on."""
    real, results = getattr(target, name), []

    def noting(*args):
        results.append(real(*args))
        return results[-1]

    setattr(target, name, noting)
    return results


def arguments_of(target: object, name: str) -> list[tuple]:
    """What the method `name` of `target` is called with from now on."""
    real, calls = getattr(target, name), []

    def noting(*args):
        calls.append(args)
        return real(*args)

    setattr(target, name, noting)
    return calls


@pytest.mark.parametrize("composed", [True, False])
def test_reasoner_and_planner_get_the_very_arrays_that_were_made(graph, composed):
    stack = Stack(graph, composed_nodes() if composed else SEPARATE)
    graph.wait_active(stack.reasoner)
    encoded = results_of(stack.encoder.stage.encoder, "decode")
    reasoned = arguments_of(stack.reasoner.stage.reasoner, "reason")
    tokens = results_of(stack.reasoner.stage.reasoner, "reason")
    planned = arguments_of(stack.planner.stage.planner, "plan")
    stack.drive(4)
    made = [id(output.queries) for output in encoded]
    thought = [id(output.reasoning) for output in tokens]
    assert [id(job[0]) in made for job in reasoned] == [composed] * 4
    assert [id(job[0]) in made for job in planned] == [composed] * 4
    used = [id(job[3]) in thought for job in planned if job[3] is not None]
    assert used == [composed] * 3, "the plan of a set has the token of the set before"


def test_no_message_goes_between_them(graph):
    stack = Stack(graph, composed_nodes())
    graph.wait_active(stack.reasoner)
    stack.drive(2)
    for topic in ("/occupancy/queries", "/reasoning/tokens"):
        assert len(stack.planner.get_publishers_info_by_topic(topic)) == 1
        assert stack.planner.get_subscriptions_info_by_topic(topic) == []


@pytest.mark.parametrize("composed", [True, False])
def test_only_separate_nodes_hear_such_messages_from_outside(graph, composed):
    stack = Stack(graph, composed_nodes() if composed else SEPARATE)
    graph.wait_active(stack.reasoner)
    queries = graph.listener.create_publisher(OccupancyQueries, "occupancy/queries", qos.RESULT)
    tokens = graph.listener.create_publisher(ReasoningTokens, "reasoning/tokens", qos.RESULT)
    if not composed:
        wait_for(lambda: queries.get_subscription_count() == 2, "queries to be matched")
        wait_for(tokens.get_subscription_count, "tokens to be matched")
    queries.publish(forged(stack.encoder, t0_ns := time.time_ns()))
    origin = convert.provenance(stack.reasoner.stage.reasoner.info, 1, 0.0)
    tokens.publish(convert.reasoning_msg(Reasoning.fake(t0_ns), origin, "fake-encoder", 1, "?"))
    if composed:
        time.sleep(1.0)
    else:
        wait_for(lambda: t0_ns in stack.planned(), "the plan for what came from outside")
        wait_for(lambda: stack.reasoner.stage.newest, "the reasoner to have heard")
    assert (t0_ns not in stack.planned()) == composed
    assert (stack.reasoner.stage.newest is None) == composed
    # And driving goes on, once for each set.
    sent = stack.drive(2)
    assert [t0 for t0 in stack.planned() if t0 in sent] == sent


def test_who_listens_from_outside_gets_each_message_once_and_whole(graph):
    stack = Stack(graph, composed_nodes())
    graph.wait_active(stack.reasoner)
    queries = graph.listen(OccupancyQueries, "occupancy/queries")
    tokens = graph.listen(ReasoningTokens, "reasoning/tokens")
    wait_for(stack.encoder._queries.get_subscription_count, "queries to be matched")
    wait_for(stack.reasoner._tokens.get_subscription_count, "tokens to be matched")
    made = results_of(stack.encoder.stage.encoder, "decode")
    sent = stack.drive(4)
    wait_for(lambda: len(tokens) >= 4, "a token for each set")
    assert [convert.time_ns(m.header.stamp) for m in queries] == sent
    assert [convert.time_ns(m.header.stamp) for m in tokens] == sent
    assert [m.queries_sequence for m in tokens] == [m.provenance.sequence for m in queries]
    for message, output in zip(queries, made, strict=True):
        assert np.array_equal(convert.queries(message).features, output.queries.features)
        assert message.reference_camera == "cam_front"
        assert 0 < message.provenance.execution_s < 10


def test_same_frame_waits_for_the_token_that_is_handed_over(graph):
    same_frame = {"reasoning__policy": "same_frame", "reasoning__deadline_s": 5.0}
    stack = Stack(graph, composed_nodes(), planner=same_frame)
    graph.wait_active(stack.reasoner)
    sent = stack.drive(3)
    assert [convert.time_ns(m.reasoning_t0) for m in stack.proposals] == sent
    assert all(m.status == PlanStatus.OK for m in stack.proposals)


def test_a_reasoner_that_can_not_start_says_so_and_leaves_the_others_driving(graph):
    diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
    stack = Stack(graph, composed_nodes(), reasoner={"reasoner__max_rate_hz": -1.0})

    def said() -> bool:
        return any("max_rate_hz" in s.message for d in diagnostics for s in d.status if "reasoner" in s.name)

    wait_for(said, "the reasoner's diagnosis")
    stack.drive(2)
    assert stack.proposals[-1].status & PlanStatus.DEGRADED_NO_REASONING


def test_a_failure_while_taking_is_a_fault_and_the_next_set_is_planned(graph):
    stack = Stack(graph, composed_nodes())
    diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
    add_frame = stack.planner.stage.add_frame

    def fail(*_):
        stack.planner.stage.add_frame = add_frame
        raise RuntimeError("planted")

    stack.planner.stage.add_frame = fail
    stack.rig.send_set(time.time_ns() - SECOND)

    def said() -> bool:
        return any("planted" in s.message for d in diagnostics for s in d.status if "planner" in s.name)

    wait_for(said, "the planner's diagnosis")
    stack.drive(2)


def test_without_a_reasoner_tokens_come_from_outside(graph):
    stack = Stack(graph, composed_nodes(with_reasoner=False))
    tokens = graph.listener.create_publisher(ReasoningTokens, "reasoning/tokens", qos.RESULT)
    wait_for(tokens.get_subscription_count, "tokens to be matched")
    origin = convert.provenance(stack.planner.stage.planner.info, 1, 0.0)
    token = Reasoning.fake(time.time_ns() - SECOND)
    tokens.publish(convert.reasoning_msg(token, origin, "fake-encoder", 1, "?"))
    time.sleep(0.5)
    stack.drive(2)
    assert convert.time_ns(stack.proposals[-1].reasoning_t0) == token.t0_ns


def test_a_node_that_was_deactivated_takes_nothing_until_it_is_active_again(graph):
    stack = Stack(graph, composed_nodes())
    graph.wait_active(stack.reasoner)
    stack.drive(1)
    stack.reasoner.trigger_deactivate()
    newest = stack.reasoner.stage.newest
    stack.drive(1)
    assert stack.reasoner.stage.newest is newest
    stack.reasoner.trigger_activate()
    sent = stack.drive(1)
    wait_for(lambda: stack.reasoner.stage.newest.t0_ns == sent[0], "the reasoner to take again")
