"""The guard node: good proposals pass at once, everything else ends in braking that says why."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
from conftest import Graph, wait_for
from diagnostic_msgs.msg import DiagnosticArray
from sparseoccvla_msgs.msg import PlannedTrajectory, PlanProposal

from sparseoccvla.contracts import PlanProposal as Proposal
from sparseoccvla.contracts import PlanStatus, StageInfo
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.guard_node import GuardNode
from sparseoccvla_ros.rig import Rig

SECOND = 1_000_000_000
PLANNER = StageInfo("planner", "0123456789abcdef", "p1", "e1", True, "world", "fake", "")


class Bench:
    """A guard node, a moving vehicle and proposals made by hand."""

    def __init__(self, graph: Graph, **parameters) -> None:
        self.graph = graph
        self.trajectories: list[PlannedTrajectory] = graph.listen(PlannedTrajectory, "plan/trajectory")
        self.diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
        self.node = graph.add(GuardNode, **parameters)
        graph.wait_active(self.node)
        self.rig = graph.add_plain(Rig(speed_mps=8.0))
        self.proposals = graph.listener.create_publisher(PlanProposal, "plan/proposal", qos.RESULT)
        wait_for(lambda: self.proposals.get_subscription_count(), "proposals to be matched")
        wait_for(lambda: self.rig.odom.get_subscription_count(), "odometry to be matched")

    def drive(self) -> int:
        now_ns = time.time_ns()
        self.rig.send_odometry(now_ns)
        time.sleep(0.05)
        return now_ns

    def propose(self, **changes) -> int:
        """Send a proposal of just now; returns its t0."""
        t0_ns = self.drive() - SECOND // 20
        self.send(replace(Proposal.fake(t0_ns), **changes))
        return t0_ns

    def send(self, proposal: Proposal) -> None:
        origin = convert.provenance(PLANNER, 1, 0.0)
        self.proposals.publish(convert.proposal_msg(proposal, origin, PLANNER))

    def stamped(self, t0_ns: int) -> PlannedTrajectory:
        def found() -> list[PlannedTrajectory]:
            return [m for m in self.trajectories if convert.time_ns(m.header.stamp) == t0_ns]

        return wait_for(found, "a trajectory with the proposal's stamp")[0]

    def fallback(self, reason: str) -> PlannedTrajectory:
        def found() -> list[PlannedTrajectory]:
            return [
                m for m in self.trajectories if m.source == PlannedTrajectory.FALLBACK and reason in m.reason
            ]

        wait_for(found, f"a fallback because of {reason!r}, got {[m.reason for m in self.trajectories][-3:]}")
        return found()[-1]


def test_a_good_proposal_passes_with_its_stamp_and_identity(graph):
    bench = Bench(graph)
    t0_ns = bench.propose()
    plan = bench.stamped(t0_ns)
    assert plan.source == PlannedTrajectory.MODEL
    assert plan.header.frame_id == "base_link"
    assert plan.stamp_source == "cam_front"
    assert plan.provenance.model_id == "0123456789abcdef"
    assert plan.reason == ""
    np.testing.assert_allclose([pose.position.x for pose in plan.poses], [4, 8, 12, 16, 20, 24], atol=1e-5)
    np.testing.assert_allclose(plan.velocity, 8.0, atol=0.05)
    assert 0 < plan.camera_age < 1
    assert convert.time_ns(plan.valid_until) > time.time_ns() - SECOND


def test_silence_of_the_planner_ends_in_braking_from_the_vehicles_speed(graph):
    bench = Bench(graph, guard__proposal_timeout_s=0.3)
    bench.stamped(bench.propose())
    time.sleep(0.4)
    bench.drive()
    plan = bench.fallback("proposal")
    assert plan.status & PlanStatus.NO_PROPOSAL
    assert plan.chosen == -1
    speeds = np.array(plan.velocity)
    assert 5.0 < speeds[0] < 8.0
    assert (np.diff(speeds) <= 1e-6).all()
    assert speeds[-1] == 0.0


def test_a_plan_that_is_not_finite_never_leaves(graph):
    bench = Bench(graph)
    proposal = Proposal.fake(bench.drive() - SECOND // 20)
    proposal.candidates[:] = np.nan
    bench.send(proposal)
    plan = bench.fallback("finite")
    assert plan.status & PlanStatus.NOT_FINITE
    assert np.isfinite([pose.position.x for pose in plan.poses]).all()


def test_an_infeasible_first_choice_gives_way_to_the_next_best(graph):
    bench = Bench(graph)
    proposal = Proposal.fake(bench.drive() - SECOND // 20)
    proposal.candidates[17, :, 0] *= 10  # 80 m/s
    bench.send(proposal)
    plan = bench.stamped(proposal.t0_ns)
    assert plan.source == PlannedTrajectory.MODEL
    assert plan.chosen == 16
    assert plan.status & PlanStatus.NEXT_BEST_CANDIDATE
    assert plan.reason


def test_lost_odometry_ends_in_a_stop_that_says_so(graph):
    bench = Bench(graph)
    bench.send(Proposal.fake(time.time_ns() - SECOND // 20))
    assert bench.fallback("odometry").status & PlanStatus.NO_ODOMETRY


def test_an_old_proposal_is_stale(graph):
    bench = Bench(graph)
    bench.drive()
    bench.send(Proposal.fake(time.time_ns() - 5 * SECOND))
    assert bench.fallback("old").status & PlanStatus.STALE


def test_a_fallback_is_an_error_in_diagnostics_and_a_good_plan_ends_it(graph):
    bench = Bench(graph)

    def level(name: str) -> int:
        found = [s for d in bench.diagnostics for s in d.status if s.name.startswith(name)]
        return int.from_bytes(found[-1].level) if found else -1

    wait_for(lambda: level("guard_node") == 2, "ERROR while there is no plan")
    deadline = time.monotonic() + 10
    while level("guard_node") != 0 and time.monotonic() < deadline:
        bench.propose()
        time.sleep(0.1)
    assert level("guard_node") == 0


def test_a_command_outside_the_enum_is_refused_and_the_guard_lives(graph):
    bench = Bench(graph)
    origin = convert.provenance(PLANNER, 1, 0.0)
    message = convert.proposal_msg(Proposal.fake(bench.drive()), origin, PLANNER)
    message.command = 77
    bench.proposals.publish(message)

    def said() -> bool:
        return any("command is 77" in s.message for d in bench.diagnostics for s in d.status)

    wait_for(said, "the reason in diagnostics")
    assert bench.stamped(bench.propose()).source == PlannedTrajectory.MODEL


def test_the_guard_runs_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import sparseoccvla_ros.guard_node\n"
        "assert not any(name == 'torch' or name.startswith('torch.') for name, m in sys.modules.items() if m)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
