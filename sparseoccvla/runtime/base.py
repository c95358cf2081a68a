"""What a backend must do, stage by stage. The only place where the stack meets a network.

A backend is chosen once, by name, in `load.py`. Everything on this side of the seam is numpy; what a
backend keeps in `FeatureSet.maps` is its own business (a torch tensor, a device buffer, an array).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    Command,
    EgoState,
    EncoderInput,
    OccupancyPoints,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
    StageInfo,
)
from sparseoccvla.voxels import VoxelRule


@dataclass(frozen=True)
class FeatureSet:
    """Feature maps of one camera set and where its cameras were. Temporal memory is a list of these."""

    t0_ns: int
    maps: Any  # the backend's own
    image_from_odom: NDArray[np.float64]  # (N, 4, 4), pixels of the model's pictures
    odom_from_base: NDArray[np.float64]  # (4, 4) at t0
    valid: NDArray[np.bool_]  # (N,)


@dataclass(frozen=True)
class EncoderOutput:
    """Queries for the stages behind, points for whoever wants voxels."""

    queries: OccupancyQueries
    points: OccupancyPoints


@dataclass(frozen=True)
class ReasonerOutput:
    """T_r and the forecast of one prefill."""

    reasoning: Reasoning
    forecast: tuple[OccupancyPoints, ...]  # one for each of FORECAST_HORIZONS_S
    prompt: str


class Encoder(Protocol):
    """Pictures to queries."""

    info: StageInfo
    voxel_rule: VoxelRule  # how this model's points become voxels

    def extract(self, inputs: EncoderInput) -> FeatureSet:
        """Backbone and neck on one camera set."""
        ...

    def decode(self, frames: Sequence[FeatureSet | None]) -> EncoderOutput:
        """Decoder over `info.history_frames` feature sets, newest first; None is a masked frame.

        `frames[0]` must be there; its base_link is the frame of the result.
        """
        ...


class Reasoner(Protocol):
    """Queries to a reasoning token, a forecast, and words."""

    info: StageInfo
    voxel_rule: VoxelRule  # how the forecast's points become voxels

    def reason(self, queries: OccupancyQueries) -> ReasonerOutput:
        """One prefill."""
        ...

    def answer(self, queries: OccupancyQueries, question: str, max_tokens: int) -> Iterator[str]:
        """Pieces of text as they are decoded; closing the iterator stops the decoding."""
        ...


class Planner(Protocol):
    """Queries, ego state, command and reasoning to 18 scored trajectories."""

    info: StageInfo
    anchors_m: NDArray[np.float32]  # (commands LEFT RIGHT STRAIGHT, modes, steps, 2) x y in base_link

    def plan(
        self,
        queries: OccupancyQueries,
        ego: EgoState,
        command: Command,
        reasoning: Reasoning | None,
        reasoning_age_s: float,
    ) -> PlanProposal:
        """Score every anchor, refine every candidate, choose within the command's group.

        `reasoning` None is the learned null token. Equal inputs give equal plans: the diffusion
        noise is seeded by `queries.t0_ns`.
        """
        ...
