"""From a planner's numbers to a `PlanProposal`: the part that no backend may do differently."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    NUM_ANCHORS,
    NUM_MODES,
    NUM_STEPS,
    Command,
    EgoState,
    OccupancyQueries,
    PlanProposal,
    PlanStatus,
    Reasoning,
)
from sparseoccvla.geometry import headings_along


def noise_of(seed: int, t0_ns: int) -> NDArray[np.float32]:
    """Diffusion noise (A, S, 2): a function of model seed and stamp, so that a plan can be repeated."""
    rng = np.random.default_rng([seed, t0_ns])
    return rng.standard_normal((NUM_ANCHORS, NUM_STEPS, 2)).astype(np.float32)


def build_proposal(
    queries: OccupancyQueries,
    ego: EgoState,
    command: Command,
    reasoning: Reasoning | None,
    candidates_m: NDArray[np.floating],
    scores: NDArray[np.floating],
) -> PlanProposal:
    """The best-scored candidate of the command's group, with all 18 beside it.

    Args:
        queries: of the plan; their t0 is the plan's.
        ego: motion at t0.
        command: UNKNOWN chooses among STRAIGHT.
        reasoning: what the scores were made with, None for the null token.
        candidates_m: (A, S, 2) refined cumulative x y.
        scores: (A,) in [0, 1].
    """
    status = PlanStatus.OK
    if reasoning is None:
        status |= PlanStatus.DEGRADED_NO_REASONING
    if command is Command.UNKNOWN:
        status |= PlanStatus.DEGRADED_NO_COMMAND
    if not ego.motion_valid:
        status |= PlanStatus.DEGRADED_EGO_STATE
    first = command.anchor_row * NUM_MODES
    return PlanProposal(
        t0_ns=queries.t0_ns,
        command=command,
        candidates=np.concatenate([candidates_m, headings_along(candidates_m)[..., None]], axis=-1),
        scores=scores,
        chosen=first + int(np.argmax(scores[first : first + NUM_MODES])),
        status=status,
        reasoning_t0_ns=reasoning.t0_ns if reasoning else 0,
        speed_mps=ego.speed_mps,
        yaw_rate_radps=ego.yaw_rate_radps,
    )
