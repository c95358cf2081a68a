"""What needs no eyes: the rows that stand beside the model in every table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FORECAST_HORIZONS_S, FREE_CLASS, NUM_STEPS, OCC3D_GRID, STEP_S, EgoState
from sparseoccvla.metrics.additive import STATE, Additive, zeros


def constant_velocity(ego: EgoState) -> NDArray[np.float64]:
    """A plan (6, 3) of x_m, y_m, yaw_rad in base_link at t0 that keeps speed and heading."""
    plan = np.zeros((NUM_STEPS, 3))
    plan[:, 0] = ego.speed_mps * STEP_S * np.arange(1, NUM_STEPS + 1)
    return plan


def persistence(present: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """A forecast that says everything stays where it is: the present labels at each horizon."""
    return [present for _ in FORECAST_HORIZONS_S]


@dataclass
class StaticPrior(Additive):
    """The most frequent label of each voxel over training frames, free included: what a map could know."""

    counts: NDArray[np.uint32] = field(
        default_factory=zeros((*OCC3D_GRID.shape, FREE_CLASS + 1), np.uint32), metadata=STATE
    )

    def update(self, truth: NDArray[np.integer], counted: NDArray[np.bool_] | None = None) -> None:
        """Add one training frame: labels (X, Y, Z), and which voxels count (all if None)."""
        known = truth <= FREE_CLASS if counted is None else (truth <= FREE_CLASS) & counted
        place = np.nonzero(known)
        self.counts[(*place, truth[known])] += 1

    def labels(self) -> NDArray[np.uint8]:
        """(X, Y, Z) most frequent labels; free where nothing was ever seen."""
        best = self.counts.argmax(axis=-1).astype(np.uint8)
        return np.where(self.counts.any(axis=-1), best, np.uint8(FREE_CLASS))


class QuestionOnly(Protocol):
    """Anything that answers without seeing: the language model without occupancy tokens, or the below."""

    def answer(self, question: str) -> str: ...


@dataclass
class MajorityAnswers:
    """Answers each question with its most frequent answer in training; an unknown one with the overall."""

    by_question: dict[str, Counter[str]] = field(default_factory=dict)

    def update(self, question: str, answer: str) -> None:
        self.by_question.setdefault(question, Counter())[answer] += 1

    def answer(self, question: str) -> str:
        """The most frequent answer; among equals the first seen.

        Raises:
            ValueError: nothing was learned.
        """
        if not self.by_question:
            raise ValueError("no training answer to choose from")
        known = self.by_question.get(question) or sum(self.by_question.values(), Counter())
        return known.most_common(1)[0][0]
