"""The planner node: pairing with reasoning, commands, refusals."""

from __future__ import annotations

import time

import numpy as np
from conftest import Graph, wait_for
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from sparseoccvla_msgs.msg import DrivingCommand, OccupancyQueries, PlanProposal, ReasoningTokens, StackInfo

from sparseoccvla.contracts import (
    CAMERA_NAMES,
    CameraSet,
    CameraSlot,
    CameraState,
    PlanStatus,
    Reasoning,
    StageInfo,
)
from sparseoccvla.contracts import (
    OccupancyQueries as Queries,
)
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.planner_node import PlannerNode
from sparseoccvla_ros.rig import Rig

SECOND = 1_000_000_000
ENCODER = StageInfo("encoder", "0" * 16, "fake-encoder", "", False, "", "fake", "")
REASONER = StageInfo("reasoner", "0" * 16, "fake-reasoner", "fake-encoder", False, "", "fake", "")


class Bench:
    """A planner node with the fake backend, and hand-made inputs."""

    def __init__(self, graph: Graph, **parameters) -> None:
        self.graph = graph
        self.proposals: list[PlanProposal] = graph.listen(PlanProposal, "plan/proposal")
        self.diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
        self.node = graph.add(PlannerNode, backend="fake", **parameters)
        graph.wait_active(self.node)
        self.rig = graph.add_plain(Rig(speed_mps=8.0))
        self.queries = graph.listener.create_publisher(OccupancyQueries, "occupancy/queries", qos.RESULT)
        self.tokens = graph.listener.create_publisher(ReasoningTokens, "reasoning/tokens", qos.RESULT)
        wait_for(lambda: self.queries.get_subscription_count(), "queries to be matched")
        wait_for(lambda: self.rig.odom.get_subscription_count(), "odometry to be matched")

    def send(self, t0_ns: int, stage_id: str = "fake-encoder", missing: int = 0) -> None:
        self.rig.send_odometry(t0_ns)
        time.sleep(0.05)  # odometry and queries are different topics: no order between them
        state = [CameraState.MISSING] * missing + [CameraState.FRESH] * (6 - missing)
        slots = tuple(CameraSlot(n, s, t0_ns) for n, s in zip(CAMERA_NAMES, state, strict=True))
        origin = convert.provenance(ENCODER, 1, 0.0)
        origin.stage_id = stage_id
        camera_set = CameraSet(t0_ns, CAMERA_NAMES[missing], slots)
        self.queries.publish(
            convert.queries_msg(Queries.fake(t0_ns), origin, camera_set, (t0_ns - 5,), False)
        )

    def send_token(self, t0_ns: int, width: int = 256) -> None:
        origin = convert.provenance(REASONER, 1, 0.0)
        token = Reasoning.fake(t0_ns, width)
        self.tokens.publish(convert.reasoning_msg(token, origin, "fake-encoder", 1, "?"))

    def plan(self, t0_ns: int, **kwargs) -> PlanProposal:
        count = len(self.proposals)
        self.send(t0_ns, **kwargs)
        return wait_for(lambda: self.proposals[count:], "a proposal")[0]


def test_a_plan_carries_the_cameras_time_and_everything_it_was_made_with(graph):
    bench = Bench(graph)
    bench.send_token(t0_ns := time.time_ns())
    time.sleep(0.2)
    plan = bench.plan(t0_ns + SECOND // 4)
    assert convert.time_ns(plan.header.stamp) == t0_ns + SECOND // 4
    assert plan.header.frame_id == "base_link"
    assert plan.stamp_source == "cam_front"
    assert convert.time_ns(plan.reasoning_t0) == t0_ns
    assert convert.time_ns(plan.history[0]) == t0_ns + SECOND // 4 - 5
    assert plan.command == DrivingCommand.STRAIGHT, "the latched command of the rig"
    assert plan.status == PlanStatus.OK
    assert len(plan.candidates) == 18
    assert plan.candidates[plan.chosen].command == DrivingCommand.STRAIGHT
    assert plan.speed == 8.0
    assert not plan.trained


def test_without_reasoning_the_plan_says_so_and_comes_at_once(graph):
    bench = Bench(graph)
    plan = bench.plan(time.time_ns())
    assert plan.status & PlanStatus.DEGRADED_NO_REASONING
    assert convert.time_ns(plan.reasoning_t0) == 0


def test_reasoning_that_is_too_old_is_not_used(graph):
    bench = Bench(graph, reasoning__max_age_s=1.0)
    bench.send_token(t0_ns := time.time_ns())
    time.sleep(0.2)
    assert convert.time_ns(bench.plan(t0_ns + 9 * SECOND // 10).reasoning_t0) == t0_ns
    assert bench.plan(t0_ns + 11 * SECOND // 10).status & PlanStatus.DEGRADED_NO_REASONING


def test_reasoning_switched_off_is_no_fault(graph):
    bench = Bench(graph, reasoning__policy="off")
    assert bench.plan(time.time_ns()).status == PlanStatus.OK
    assert bench.node.get_subscriptions_info_by_topic("/reasoning/tokens") == []


def test_same_frame_waits_for_its_token(graph):
    bench = Bench(graph, reasoning__policy="same_frame", reasoning__deadline_s=5.0)
    bench.send(t0_ns := time.time_ns())
    time.sleep(0.3)
    assert bench.proposals == []
    bench.send_token(t0_ns)
    plan = wait_for(lambda: bench.proposals, "the plan once its token is there")[0]
    assert convert.time_ns(plan.reasoning_t0) == t0_ns


def test_same_frame_gives_up_at_its_deadline(graph):
    bench = Bench(graph, reasoning__policy="same_frame", reasoning__deadline_s=0.2)
    plan = bench.plan(time.time_ns())
    assert plan.status & PlanStatus.DEGRADED_NO_REASONING


def test_the_command_selects_the_group_and_an_expired_one_counts_as_unknown(graph):
    bench = Bench(graph)
    now_ns = time.time_ns()
    bench.rig.command.publish(
        DrivingCommand(
            command=DrivingCommand.LEFT, source="route", valid_until=convert.time_msg(now_ns + SECOND)
        )
    )
    time.sleep(0.2)
    left = bench.plan(now_ns)
    assert left.command == DrivingCommand.LEFT
    assert left.candidates[left.chosen].y[-1] > 1.0
    late = bench.plan(now_ns + 2 * SECOND)
    assert late.command == DrivingCommand.UNKNOWN
    assert late.status & PlanStatus.DEGRADED_NO_COMMAND
    assert late.candidates[late.chosen].command == DrivingCommand.STRAIGHT


def test_a_masked_camera_shows_in_the_status(graph):
    bench = Bench(graph)
    plan = bench.plan(time.time_ns(), missing=1)
    assert plan.status & PlanStatus.DEGRADED_CAMERAS
    assert plan.stamp_source == "cam_front_right"


def test_queries_of_another_model_are_refused_by_name(graph):
    bench = Bench(graph)
    bench.send(time.time_ns(), stage_id="somebody-else")
    wait_for(lambda: bench.node.stage.refused, "the refusal")

    def said() -> bool:
        texts = [s.message for d in bench.diagnostics for s in d.status]
        return any("queries come from encoder stage somebody-else" in text for text in texts)

    wait_for(said, "the reason in diagnostics")
    assert bench.proposals == []
    assert graph.state(bench.node) == "active"


def test_reasoning_of_another_model_is_refused(graph):
    bench = Bench(graph)
    origin = convert.provenance(REASONER, 1, 0.0)
    origin.model_id = "f" * 16
    token = Reasoning.fake(time.time_ns())
    bench.tokens.publish(convert.reasoning_msg(token, origin, "fake-encoder", 1, "?"))
    wait_for(lambda: bench.node.stage.refused, "the refusal")
    assert bench.plan(token.t0_ns).status & PlanStatus.DEGRADED_NO_REASONING


def test_the_path_is_the_chosen_candidate(graph):
    bench = Bench(graph)
    paths = graph.listen(Path, "plan/path")
    wait_for(lambda: bench.node._path.get_subscription_count(), "the path to be matched")
    plan = bench.plan(time.time_ns())
    path = wait_for(lambda: paths, "a path")[0]
    chosen = plan.candidates[plan.chosen]
    assert np.allclose([pose.pose.position.x for pose in path.poses[1:]], chosen.x)


def test_anchors_are_published_latched(graph):
    Bench(graph)
    infos = graph.listen(StackInfo, "info", qos.LATCHED_ALL)
    info = wait_for(lambda: infos, "the latched info")[0]
    assert convert.tensor_array(info.anchors).shape == (3, 6, 6, 2)
