"""The planner stage: queries, ego state, command and reasoning in; a proposal out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import OdometryConfig, ReasoningConfig
from sparseoccvla.contracts import (
    Command,
    DrivingCommand,
    EgoState,
    OccupancyQueries,
    PlanProposal,
    PlanStatus,
    Reasoning,
)
from sparseoccvla.errors import InputError
from sparseoccvla.odometry import OdometryBuffer
from sparseoccvla.pairing import Pairing, ReasoningPairing
from sparseoccvla.runtime.base import Planner


@dataclass(frozen=True)
class Frame:
    """Queries as they reached the planner."""

    queries: OccupancyQueries
    arrived_ns: int  # node clock
    stamp_source: str  # the camera whose stamp is t0
    history_ns: tuple[int, ...] = ()
    all_cameras: bool = True


@dataclass(frozen=True)
class PlanJob:
    """A frame with everything it will be planned with: what `process` sees and nothing else."""

    frame: Frame
    pairing: Pairing
    ego: EgoState
    command: Command


class PlannerStage:
    """Everything the planner node knows, without ROS.

    Inputs may come from another thread than the one that calls `process`, which reads only its job.

    Args:
        planner: a backend.
        reasoning: how frames and tokens are paired.
        odometry: how the ego state is built.
    """

    def __init__(self, planner: Planner, reasoning: ReasoningConfig, odometry: OdometryConfig) -> None:
        self.planner = planner
        self.pairing = ReasoningPairing(reasoning)
        self.odometry = OdometryBuffer(odometry)
        self._command = DrivingCommand(0, Command.UNKNOWN)
        self._waiting: Frame | None = None
        self._last_t0_ns = 0
        self._lock = Lock()
        self.replaced = 0  # frames that still waited for reasoning when the next one came
        self.refused = 0

    def add_odometry(
        self, stamp_ns: int, odom_from_base: NDArray[np.float64], speed_mps: float, yaw_rate_radps: float
    ) -> None:
        """Take an odometry sample."""
        with self._lock:
            self.odometry.add(stamp_ns, odom_from_base, speed_mps, yaw_rate_radps)

    def set_command(self, command: DrivingCommand) -> None:
        """Take the command in force from now on."""
        self._command = command

    def add_reasoning(self, reasoning: Reasoning, model_id: str, now_ns: int) -> PlanJob | None:
        """Take a token; the frame that waited for it comes back as a job.

        Raises:
            InputError: the token was made by another model than this planner belongs to.
        """
        wanted = self.planner.info.model_id
        if model_id != wanted:
            self.refused += 1
            raise InputError(
                f"reasoning token comes from model {model_id or '(none)'}, this planner belongs to {wanted}; "
                "run both from one model"
            )
        self.pairing.add(reasoning, reasoning.t0_ns)
        return self.poll(now_ns)

    def add_frame(self, frame: Frame, stage_id: str, now_ns: int) -> PlanJob | None:
        """Take queries; a job unless they wait for their reasoning.

        Raises:
            InputError: they come from another encoder than this planner was trained behind.
        """
        wanted = self.planner.info.requires_stage_id
        if stage_id != wanted:
            self.refused += 1
            raise InputError(
                f"queries come from encoder stage {stage_id or '(none)'}, this planner was trained behind "
                f"{wanted}; run both from one model"
            )
        if frame.queries.t0_ns < self._last_t0_ns:
            self.pairing.clear()  # a bag that loops: tokens of the pass before are of the future
        self._last_t0_ns = frame.queries.t0_ns
        self.replaced += self._waiting is not None
        self._waiting = frame
        return self.poll(now_ns)

    def poll(self, now_ns: int) -> PlanJob | None:
        """The waiting frame as a job, once its reasoning came or its deadline passed."""
        frame = self._waiting
        if frame is None:
            return None
        t0_ns = frame.queries.t0_ns
        pairing = self.pairing.pair(t0_ns, frame.arrived_ns, now_ns)
        if pairing is None:
            return None
        self._waiting = None
        with self._lock:
            ego = self.odometry.ego_state(t0_ns)
        return PlanJob(frame, pairing, ego, self._command.at(t0_ns))

    def process(self, job: PlanJob) -> PlanProposal:
        """Plan; a function of the job alone."""
        frame, pairing = job.frame, job.pairing
        proposal = self.planner.plan(
            frame.queries,
            job.ego,
            job.command,
            pairing.reasoning,
            pairing.age_s if pairing.reasoning else 0.0,
        )
        # Without reasoning by choice is not degraded; which it is, the pairing knows.
        status = proposal.status & ~PlanStatus.DEGRADED_NO_REASONING | pairing.status
        if not frame.all_cameras:
            status |= PlanStatus.DEGRADED_CAMERAS
        return replace(
            proposal,
            status=status,
            reasoning_t0_ns=pairing.reasoning_t0_ns,
            forecast_t0_ns=pairing.forecast_t0_ns,
            history_stamps_ns=frame.history_ns,
            stamp_source=frame.stamp_source,
        ).validate()
