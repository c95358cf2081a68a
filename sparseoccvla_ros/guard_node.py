"""The last gate: proposals in, the one trajectory a controller may follow out. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nav_msgs.msg import Odometry
from sparseoccvla_msgs.msg import PlannedTrajectory, PlanProposal

from sparseoccvla import contracts
from sparseoccvla.config import GuardConfig, OdometryConfig
from sparseoccvla.contracts import Source, StageInfo
from sparseoccvla.guard import Guard
from sparseoccvla.odometry import OdometryBuffer
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.health import Level, steady_clock
from sparseoccvla_ros.stage_node import StageNode, spin

# The guard has no weights; what it passes on carries the identity of the proposal.
_NO_MODEL = StageInfo("guard", "", "", "", True, "", "rules", "the guard is no network")


class GuardNode(StageNode):
    """Judges each proposal as it comes, and brakes by its own timer while none does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("guard_node", **kwargs)
        self.guard: Guard | None = None
        self._sequence = 0
        self._sent: Counter[str] = Counter()

    def declare(self) -> None:
        self.settings = params.declare(self, GuardConfig, "guard")
        self.odometry = params.declare(self, OdometryConfig, "odometry")

    def configure(self) -> None:
        self.guard = Guard(self.settings)
        self.motion = OdometryBuffer(self.odometry)
        self._output = self.create_lifecycle_publisher(PlannedTrajectory, "plan/trajectory", qos.RESULT)

    def activate(self) -> None:
        self.subscribe(PlanProposal, "plan/proposal", self._on_proposal, qos.RESULT)
        self.subscribe(Odometry, "odom", self._on_odometry, qos.ODOM)
        # The steady clock: a stopped /clock must not stop the watchdog.
        self._timer = self.create_timer(1 / self.settings.rate_hz, self._on_timer, clock=steady_clock())

    def deactivate(self) -> None:
        self.destroy_timer(self._timer)

    def cleanup(self) -> None:
        self.guard = None

    def facts(self) -> Mapping[str, object]:
        sent = {f"trajectories {name}": count for name, count in self._sent.items()}
        if self.guard is None:
            return sent
        return sent | self.guard.counters.as_dict() | self.motion.counters.as_dict()

    def _on_odometry(self, message: Odometry) -> None:
        self.motion.add(*convert.odometry_sample(message))

    def _on_proposal(self, message: PlanProposal) -> None:
        start_s = time.monotonic()
        proposal: contracts.PlanProposal = convert.proposal(message)
        assert self.guard is not None
        now_ns = self.now_ns()
        trajectory = self.guard.propose(proposal, self.motion.latest_ego_state(now_ns), now_ns)
        if trajectory is not None:
            self._send(trajectory, message, start_s)

    def _on_timer(self) -> None:
        start_s = time.monotonic()
        assert self.guard is not None
        now_ns = self.now_ns()
        if now_ns == 0:
            return  # /clock has not begun: there is no time yet to stamp a trajectory with
        trajectory = self.guard.poll(now_ns, self.motion.latest_ego_state(now_ns))
        if trajectory is not None:
            self._send(trajectory, None, start_s)

    def _send(
        self, trajectory: contracts.PlannedTrajectory, proposal: PlanProposal | None, start_s: float
    ) -> None:
        self._sequence += 1
        origin = convert.provenance(_NO_MODEL, self._sequence, time.monotonic() - start_s)
        if proposal is not None:
            origin.model_id, origin.stage_id = proposal.provenance.model_id, proposal.provenance.stage_id
        self._output.publish(convert.trajectory_msg(trajectory, origin))
        self._sent[trajectory.source.name.lower()] += 1
        if trajectory.source is Source.FALLBACK:
            self.health.raise_fault("fallback", Level.ERROR, f"braking: {trajectory.reason}")
        else:
            self.health.clear("fallback")
            if trajectory.status:
                self.health.raise_fault("degraded", Level.WARN, f"plan is {trajectory.status.name}")
            else:
                self.health.clear("degraded")


def main() -> int:
    return spin(GuardNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
