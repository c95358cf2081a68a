"""The last gate: what leaves the stack is a feasible, fresh plan of the planner, or braking.

The guard trusts nobody. It judges each candidate of a proposal against the vehicle's own motion,
takes the next best one of the same command where the first fails, and where none is left, none comes,
or the vehicle's motion is unknown, it plans the braking itself. It never repeats an old plan as a new
one: what it sends is either a candidate of a proposal it has not seen before, or made from the newest
motion. Neither torch nor ROS nor a clock is needed; time is an argument.

Checks of a candidate are functions in a tuple (`plan_checks.CANDIDATE_CHECKS`); one that needs more
than the trajectory, such as occupied space, is a function made for the proposal and added to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import GuardConfig
from sparseoccvla.contracts import (
    HORIZON_S,
    NS_PER_S,
    NUM_MODES,
    NUM_STEPS,
    STEP_S,
    Command,
    EgoState,
    PlannedTrajectory,
    PlanProposal,
    PlanStatus,
    Source,
)
from sparseoccvla.counters import Counters
from sparseoccvla.geometry import arc_pose
from sparseoccvla.plan_checks import (
    CANDIDATE_CHECKS,
    Check,
    Trajectory,
    Verdict,
    finite,
    read_motion,
    well_formed,
)

_DEGRADED = (
    PlanStatus.DEGRADED_NO_REASONING
    | PlanStatus.DEGRADED_NO_COMMAND
    | PlanStatus.DEGRADED_CAMERAS
    | PlanStatus.DEGRADED_EGO_STATE
)
# Below this the curvature of the way driven is that of the noise.
_SLOW_MPS = 0.5
# Older than this, a "stale" stamp is no slow pipeline but another clock.
_OTHER_CLOCK_S = 3600.0


@dataclass(frozen=True)
class GuardCounters(Counters):
    """What was sent and why."""

    PREFIX: ClassVar[str] = "guard"

    proposals: int = 0
    model: int = 0
    next_best: int = 0  # of those, not the planner's first choice
    fallback: int = 0
    ignored: int = 0  # proposals not after the last accepted one
    resets: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # proposals, by status bit


@dataclass(frozen=True)
class _Choice:
    """The candidate that is passed on, and why the ones before it are not; "" if it was the first."""

    index: int
    plan: Trajectory
    reason: str


@dataclass
class _State:
    """What the guard remembers; a new one after a jump of the clock."""

    now_ns: int  # the latest seen
    heard_ns: int  # last proposal, or the start
    last_t0_ns: int | None = None  # of the last MODEL trajectory
    motion: EgoState | None = None  # the last valid one
    refusal: Verdict | None = None  # why the last trajectory was a fallback, None if it was not
    command: Command = Command.UNKNOWN


class Guard:
    """Proposals in, trajectories out; call `poll` at `config.rate_hz`.

    Args:
        config: limits.
        checks: what a candidate must pass, in this order.
    """

    def __init__(self, config: GuardConfig, checks: tuple[Check, ...] = CANDIDATE_CHECKS) -> None:
        self.config = config
        self.checks = checks
        self._count: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._state: _State | None = None

    @property
    def counters(self) -> GuardCounters:
        """A snapshot."""
        names = {item.name for item in fields(GuardCounters)} - {"refused"}
        return GuardCounters(**{name: self._count[name] for name in names}, refused=dict(self._refused))

    def propose(self, proposal: PlanProposal, ego: EgoState | None, now_ns: int) -> PlannedTrajectory | None:
        """Judge a proposal.

        Args:
            proposal: as it came; nothing about it is taken for granted.
            ego: the vehicle's newest motion, None once odometry is lost.
            now_ns: the node's clock.

        Returns:
            A MODEL trajectory with the proposal's t0, or a FALLBACK that says why. None if the proposal
            is not after the last accepted one: a straggler is no reason to brake, and the plan that
            came before it stands.
        """
        state = self._see(ego, now_ns)
        self._count["proposals"] += 1
        if state.last_t0_ns is not None and proposal.t0_ns <= state.last_t0_ns:
            self._count["ignored"] += 1
            return None
        state.heard_ns, state.command = now_ns, proposal.command
        answer = self._fresh(proposal, now_ns) or self._known(ego) or self._best(proposal, state)
        if not isinstance(answer, Verdict):
            return self._pass_on(proposal, answer, state, now_ns)
        self._refused.update(str(bit.name) for bit in answer.status)
        state.refusal = answer
        return self._brake(answer, state, now_ns)

    def poll(self, now_ns: int, ego: EgoState | None) -> PlannedTrajectory | None:
        """The guard's own timer.

        Returns:
            None while the last trajectory is a MODEL one, the next proposal is not overdue and odometry
            is there, and right after the start; else braking from the newest motion.
        """
        state = self._see(ego, now_ns)
        silent_s = (now_ns - state.heard_ns) / NS_PER_S
        overdue = silent_s > self.config.proposal_timeout_s
        lost = self._known(ego)
        if lost is not None and (overdue or state.last_t0_ns is not None):
            state.refusal = lost
        if overdue:
            begun = f"for {silent_s:.1f} s" if state.last_t0_ns is not None else "yet"
            text, status = f"no proposal {begun}", PlanStatus.NO_PROPOSAL
            if lost is not None:
                text, status = f"{lost.reason}; {text}", lost.status | status
            state.refusal = Verdict(status, text)
        return None if state.refusal is None else self._brake(state.refusal, state, now_ns)

    def _see(self, ego: EgoState | None, now_ns: int) -> _State:
        """Note the time and the motion; a clock that jumped back begins a new life."""
        state = self._state
        if state is not None and now_ns < state.now_ns - self.config.max_proposal_age_s * NS_PER_S:
            self._count["resets"] += 1
            state = None
        if state is None:
            state = self._state = _State(now_ns, now_ns)
        state.now_ns = max(state.now_ns, now_ns)
        if self._known(ego) is None:
            state.motion = ego
        return state

    def _known(self, ego: EgoState | None) -> Verdict | None:
        """None if the vehicle's motion is known."""
        if ego is None:
            return Verdict(PlanStatus.NO_ODOMETRY, "no odometry")
        motion = (ego.speed_mps, ego.acceleration_mps2, ego.yaw_rate_radps)
        if not ego.motion_valid:
            return Verdict(PlanStatus.NO_ODOMETRY, "odometry does not tell the vehicle's motion yet")
        if not np.isfinite(motion).all() or abs(ego.speed_mps) > self.config.max_speed_mps:
            return Verdict(
                PlanStatus.NO_ODOMETRY,
                f"odometry says {ego.speed_mps:g} m/s, {ego.acceleration_mps2:g} m/s^2, "
                f"{ego.yaw_rate_radps:g} rad/s, wanted finite and at most {self.config.max_speed_mps:g} m/s",
            )
        return None

    def _fresh(self, proposal: PlanProposal, now_ns: int) -> Verdict | None:
        """None if the cameras of a proposal are of now."""
        age_s = (now_ns - proposal.t0_ns) / NS_PER_S
        if -self.config.max_future_s <= age_s <= self.config.max_proposal_age_s:
            return None
        if age_s < 0:
            text = f"proposal is {-age_s:.2f} s in the future, at most {self.config.max_future_s:g} s"
        else:
            text = f"proposal is {age_s:.2f} s old, at most {self.config.max_proposal_age_s:g} s"
        if abs(age_s) > _OTHER_CLOCK_S:
            text += "; is a bag played without its clock (use_sim_time, --clock)?"
        return Verdict(PlanStatus.STALE, text)

    def _best(self, proposal: PlanProposal, state: _State) -> _Choice | Verdict:
        """The first candidate that passes, or the verdict on all of them."""
        malformed = well_formed(proposal)
        if malformed is not None:
            return malformed
        start_speed_mps = _speed_at(proposal.t0_ns, state)
        status = PlanStatus.OK
        why = _misplaced(proposal)
        for index in _order(proposal):
            poses, score = proposal.candidates[index], float(proposal.scores[index])
            judged = self._judge(poses, score, start_speed_mps)
            if not isinstance(judged, Verdict):
                return _Choice(index, judged, why)
            status |= judged.status
            why = why or f"candidate {index} {judged.reason}"
        return Verdict(status, f"no candidate of {proposal.command.name} can be followed: {why}")

    def _judge(
        self, poses: NDArray[np.floating], score: float, start_speed_mps: float
    ) -> Trajectory | Verdict:
        """A candidate with its motion, or the first check it fails."""
        verdict = finite(poses, score)
        if verdict is not None:
            return verdict
        plan = read_motion(poses)
        for check in self.checks:
            verdict = check(plan, start_speed_mps, self.config)
            if verdict is not None:
                return verdict
        return plan

    def _pass_on(
        self, proposal: PlanProposal, choice: _Choice, state: _State, now_ns: int
    ) -> PlannedTrajectory:
        status = PlanStatus(proposal.status) & _DEGRADED
        if choice.index != proposal.chosen:
            status |= PlanStatus.NEXT_BEST_CANDIDATE
            self._count["next_best"] += 1
        self._count["model"] += 1
        state.last_t0_ns, state.refusal = proposal.t0_ns, None
        reasoning_age_s = float("nan")
        if proposal.reasoning_t0_ns:
            reasoning_age_s = (proposal.t0_ns - proposal.reasoning_t0_ns) / NS_PER_S
        return PlannedTrajectory(
            t0_ns=proposal.t0_ns,
            poses=choice.plan.poses,
            speeds_mps=choice.plan.speeds_mps,
            accelerations_mps2=choice.plan.accelerations_mps2,
            source=Source.MODEL,
            stamp_source=proposal.stamp_source,
            valid_until_ns=self._valid_until_ns(proposal.t0_ns, now_ns),
            command=proposal.command,
            status=status,
            reasoning_age_s=reasoning_age_s,
            camera_age_s=(now_ns - proposal.t0_ns) / NS_PER_S,
            reason=choice.reason,
            chosen=choice.index,
        )

    def _brake(self, why: Verdict, state: _State, now_ns: int) -> PlannedTrajectory:
        """Braking from the last known motion; standing still at once where none is known.

        A motion older than the horizon is none: all of a plan from it would lie in the past.
        """
        self._count["fallback"] += 1
        status, motion = why.status, state.motion
        if motion is not None and now_ns - motion.stamp_ns < HORIZON_S * NS_PER_S:
            plan, t0_ns, stamp_source = braking(motion, self.config), motion.stamp_ns, "odometry"
        else:
            plan = Trajectory(np.zeros((NUM_STEPS, 3)), *np.zeros((3, NUM_STEPS)))
            t0_ns, stamp_source = now_ns, "clock"
            status |= PlanStatus.NO_ODOMETRY
        return PlannedTrajectory(
            t0_ns=t0_ns,
            poses=plan.poses,
            speeds_mps=plan.speeds_mps,
            accelerations_mps2=plan.accelerations_mps2,
            source=Source.FALLBACK,
            stamp_source=stamp_source,
            valid_until_ns=self._valid_until_ns(t0_ns, now_ns),
            command=state.command,
            status=status,
            reason=why.reason,
        )

    def _valid_until_ns(self, t0_ns: int, now_ns: int) -> int:
        """Never beyond the last pose."""
        return min(now_ns + round(self.config.validity_s * NS_PER_S), t0_ns + round(HORIZON_S * NS_PER_S))


def braking(motion: EgoState, config: GuardConfig) -> Trajectory:
    """Constant deceleration to a stop along the arc that the vehicle is on, in base_link at `motion`.

    The curvature is held as far as speed and steering allow; poses, speeds and accelerations are those
    of this motion, exactly. A vehicle that rolls backwards stops likewise.
    """
    speed = motion.speed_mps
    held = motion.yaw_rate_radps / speed if abs(speed) > _SLOW_MPS else 0.0
    tightest = min(
        config.max_curvature_per_m, config.max_lateral_acceleration_mps2 / max(speed**2, _SLOW_MPS**2)
    )
    held = float(np.clip(held, -tightest, tightest))
    deceleration = float(np.copysign(config.braking_mps2, speed))
    stop_s = abs(speed) / config.braking_mps2

    def driven(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        moving_s = np.minimum(times_s, stop_s)
        return speed * moving_s - deceleration * moving_s**2 / 2

    times_s = STEP_S * np.arange(1, NUM_STEPS + 1)
    length = driven(times_s)
    moving = times_s < stop_s
    return Trajectory(
        poses=arc_pose(length, held * length),
        step_speeds_mps=np.diff(length, prepend=0.0) / STEP_S,
        speeds_mps=np.where(moving, speed - deceleration * times_s, 0.0),
        accelerations_mps2=np.where(moving, -deceleration, 0.0),
    )


def _speed_at(t0_ns: int, state: _State) -> float:
    """The vehicle's speed at t0, a moment before its newest motion."""
    assert state.motion is not None
    elapsed_s = float(np.clip((state.motion.stamp_ns - t0_ns) / NS_PER_S, 0.0, HORIZON_S))
    return state.motion.speed_mps - state.motion.acceleration_mps2 * elapsed_s


def _order(proposal: PlanProposal) -> Iterator[int]:
    """Candidates of the command's group: the planner's choice first, then by falling score."""
    first = proposal.command.anchor_row * NUM_MODES
    row = range(first, first + NUM_MODES)
    if proposal.chosen in row:
        yield proposal.chosen
    for index in sorted(row, key=lambda i: (-np.nan_to_num(proposal.scores[i], nan=-np.inf), i)):
        if index != proposal.chosen:
            yield index


def _misplaced(proposal: PlanProposal) -> str:
    """What is wrong with a choice that was never looked at; "" if it was."""
    row = proposal.command.anchor_row
    if proposal.chosen // NUM_MODES == row:
        return ""
    return f"candidate {proposal.chosen} is none of {proposal.command.name}"
