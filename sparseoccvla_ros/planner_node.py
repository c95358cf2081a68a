"""Queries to a proposal: the wiring of `sparseoccvla.stages.planner`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nav_msgs.msg import Odometry, Path
from sparseoccvla_msgs.msg import DrivingCommand, OccupancyQueries, PlanProposal, ReasoningTokens, StackInfo

from sparseoccvla.config import ModelSource, OdometryConfig, ReasoningConfig
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.load import load_planner
from sparseoccvla.stages.planner import Frame, PlanJob, PlannerStage
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.hand_off import Encoded, HandOff, Reasoned
from sparseoccvla_ros.health import Level, steady_clock
from sparseoccvla_ros.stage_node import StageNode, spin
from sparseoccvla_ros.worker import LatestWorker

_POLL_S = 0.01  # how often a frame that waits for reasoning looks at its deadline


@dataclass(frozen=True)
class _Timed:
    job: PlanJob
    received_s: float


class PlannerNode(StageNode):
    """Plans for the newest queries; never waits for the language model unless told to."""

    def __init__(
        self,
        queries_from: HandOff[Encoded] | None = None,
        tokens_from: HandOff[Reasoned] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("planner_node", **kwargs)
        self._queries_from = queries_from
        self._tokens_from = tokens_from
        self.stage: PlannerStage | None = None
        self.worker: LatestWorker[_Timed] | None = None
        self._sequence = 0
        self._received_s = 0.0

    def declare(self) -> None:
        self.source = params.declare(self, ModelSource)
        self.reasoning = params.declare(self, ReasoningConfig, "reasoning")
        self.odometry = params.declare(self, OdometryConfig, "odometry")

    def configure(self) -> None:
        self.stage = PlannerStage(load_planner(self.source), self.reasoning, self.odometry)
        publisher = self.create_lifecycle_publisher
        self._proposal = publisher(PlanProposal, "plan/proposal", qos.RESULT)
        self._path = publisher(Path, "plan/path", qos.RESULT)
        self._info = publisher(StackInfo, "info", qos.LATCHED)

    def activate(self) -> None:
        assert self.stage is not None
        self.worker = self.make_worker("planner", self._plan)
        self.worker.start()
        self.receive(
            self._queries_from,
            OccupancyQueries,
            "occupancy/queries",
            convert.encoded,
            self._on_queries,
            qos.RESULT,
        )
        self.subscribe(Odometry, "odom", self._on_odometry, qos.ODOM)
        self.subscribe(DrivingCommand, "command", self._on_command, qos.LATCHED)
        if self.reasoning.policy != "off":
            self.receive(
                self._tokens_from,
                ReasoningTokens,
                "reasoning/tokens",
                convert.reasoned,
                self._on_reasoning,
                qos.RESULT,
            )
        self._timer = None
        if self.reasoning.policy == "same_frame":
            self._timer = self.create_timer(_POLL_S, self._poll, clock=steady_clock())
        self._info.publish(
            convert.info_msg(self.stage.planner.info, self.now_ns(), self.stage.planner.anchors_m)
        )

    def deactivate(self) -> None:
        if self.worker is None:
            return
        if self._timer is not None:
            self.destroy_timer(self._timer)
        self.worker.stop()
        self.worker = None

    def cleanup(self) -> None:
        self.stage = None

    def facts(self) -> Mapping[str, object]:
        if self.stage is None or self.worker is None:
            return {}
        info = self.stage.planner.info
        return {
            "backend": info.backend,
            "model_id": info.model_id,
            "trained": info.trained,
            "plans": self.worker.done,
            "frames displaced by newer": self.worker.dropped + self.stage.replaced,
            "messages refused": self.stage.refused,
            **self.stage.pairing.counters.as_dict(),
            **self.stage.odometry.counters.as_dict(),
        }

    def _on_queries(self, encoded: Encoded) -> None:
        assert self.stage is not None
        self._received_s = encoded.received_s
        now_ns = self.now_ns()
        frame = Frame(encoded.queries, now_ns, encoded.stamp_source, encoded.history_ns, encoded.all_cameras)
        self._submit(self.stage.add_frame(frame, encoded.stage_id, now_ns))

    def _on_reasoning(self, reasoned: Reasoned) -> None:
        assert self.stage is not None
        self._submit(self.stage.add_reasoning(reasoned.reasoning, reasoned.model_id, self.now_ns()))

    def _on_odometry(self, message: Odometry) -> None:
        assert self.stage is not None
        self.stage.add_odometry(*convert.odometry_sample(message))

    def _on_command(self, message: DrivingCommand) -> None:
        assert self.stage is not None
        self.stage.set_command(convert.command(message))

    def _poll(self) -> None:
        assert self.stage is not None
        self._submit(self.stage.poll(self.now_ns()))

    def _submit(self, job: PlanJob | None) -> None:
        if job is not None and self.worker is not None:
            self.worker.submit(_Timed(job, self._received_s))

    def _plan(self, timed: _Timed) -> None:
        assert self.stage is not None
        t0_ns = timed.job.frame.queries.t0_ns
        try:
            proposal = self.stage.process(timed.job)
        except InputError as error:
            self.health.raise_fault("plan", Level.ERROR, f"no plan for {t0_ns} ns: {error}")
            return
        self.health.clear("plan")
        if timed.job.pairing.status:
            self.health.raise_fault(
                "reasoning", Level.WARN, f"planned without reasoning: {timed.job.pairing.reason}"
            )
        else:
            self.health.clear("reasoning")
        info = self.stage.planner.info
        self._sequence += 1
        origin = convert.provenance(info, self._sequence, time.monotonic() - timed.received_s)
        self._proposal.publish(convert.proposal_msg(proposal, origin, info))
        if self._path.get_subscription_count():
            self._path.publish(convert.path_msg(proposal.trajectory, proposal.t0_ns))


def main() -> int:
    return spin(PlannerNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
