"""The reasoner stage: queries in; T_r, a forecast and words out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparseoccvla.contracts import (
    NS_PER_S,
    OCC3D_GRID,
    OccupancyForecast,
    OccupancyPoints,
    OccupancyQueries,
    Reasoning,
    VoxelGrid,
)
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.base import Reasoner
from sparseoccvla.voxels import sparse_occupancy


@dataclass(frozen=True)
class ReasonerResult:
    """What one prefill gave."""

    reasoning: Reasoning
    forecast_points: tuple[OccupancyPoints, ...]
    prompt: str


class ReasonerStage:
    """Everything the reasoner node knows, without ROS.

    Args:
        reasoner: a backend.
        max_rate_hz: prefills per second of camera time; queries in between are not due.
    """

    def __init__(self, reasoner: Reasoner, max_rate_hz: float) -> None:
        self.reasoner = reasoner
        self._interval_ns = round(NS_PER_S / max_rate_hz)
        self._last_t0_ns: int | None = None
        self.newest: OccupancyQueries | None = None
        self.refused = 0

    def offer(self, queries: OccupancyQueries, stage_id: str) -> bool:
        """Take queries; True if a prefill is due for them. They also become what questions are about.

        Raises:
            InputError: they come from another encoder than this reasoner was trained behind.
        """
        wanted = self.reasoner.info.requires_stage_id
        if stage_id != wanted:
            self.refused += 1
            raise InputError(
                f"queries come from encoder stage {stage_id or '(none)'}, this reasoner was trained behind "
                f"{wanted}; run both from one model"
            )
        self.newest = queries
        last = self._last_t0_ns
        # A jump back in time starts afresh. Half an interval of slack keeps a 4 Hz rig at 4 Hz.
        due = last is None or queries.t0_ns < last or queries.t0_ns - last >= self._interval_ns * 0.9
        if due:
            self._last_t0_ns = queries.t0_ns
        return due

    def process(self, queries: OccupancyQueries) -> ReasonerResult:
        """One prefill."""
        output = self.reasoner.reason(queries)
        return ReasonerResult(output.reasoning.validate(), output.forecast, output.prompt)

    def forecast(self, result: ReasonerResult, grid: VoxelGrid = OCC3D_GRID) -> OccupancyForecast:
        """Voxels of the forecast points. Nothing of the future is observed."""
        t0_ns = result.reasoning.t0_ns
        unseen, cameras = np.zeros(grid.shape, bool), np.zeros(0, bool)
        rule = self.reasoner.voxel_rule
        return OccupancyForecast(
            t0_ns,
            tuple(
                sparse_occupancy(t0_ns, points, rule, unseen, cameras, grid)
                for points in result.forecast_points
            ),
        )

    def answer(self, question: str, max_tokens: int, t0_ns: int = 0) -> tuple[int, Iterator[str]]:
        """t0 of the queries spoken about, and the pieces of an answer to `question`.

        Raises:
            InputError: nothing has been seen yet, or not at `t0_ns` (0: the newest).
        """
        queries = self.newest
        if queries is None:
            raise InputError("no camera set has been encoded yet, so there is nothing to speak about")
        if t0_ns not in (0, queries.t0_ns):
            raise InputError(
                f"only the newest queries are kept, those of {queries.t0_ns} ns; asked for {t0_ns} ns, "
                "use 0 for the newest"
            )
        if not question.strip():
            raise InputError("the question is empty")
        return queries.t0_ns, self.reasoner.answer(queries, question, max_tokens)
