"""Does the scorer choose the right anchor, and do its scores mean what they say?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.metrics.additive import STATE, Additive, zeros

BINS = 10


@dataclass
class AnchorMetric(Additive):
    """Choices among the anchors of a command, and a reliability diagram of their scores.

    Right is the anchor whose mean distance to the driven path is smallest.
    """

    right: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    regret_m: NDArray[np.float64] = field(default_factory=zeros(()), metadata=STATE)
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)
    scored: NDArray[np.int64] = field(default_factory=zeros(BINS, np.int64), metadata=STATE)
    score_sums: NDArray[np.float64] = field(default_factory=zeros(BINS), metadata=STATE)
    hits: NDArray[np.int64] = field(default_factory=zeros(BINS, np.int64), metadata=STATE)

    def update(self, scores: NDArray[np.floating], chosen: int, distances_m: NDArray[np.floating]) -> None:
        """Add one choice.

        Args:
            scores: (modes,) in [0, 1].
            chosen: which mode.
            distances_m: (modes,) of each anchor to the driven path.
        """
        best = int(distances_m.argmin())
        self.right = self.right + int(chosen == best)
        self.regret_m = self.regret_m + float(distances_m[chosen] - distances_m[best])
        self.samples = self.samples + 1
        bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
        self.scored = self.scored + np.bincount(bins, minlength=BINS)
        self.score_sums = self.score_sums + np.bincount(bins, scores, BINS)
        self.hits = self.hits + np.bincount(bins[best : best + 1], minlength=BINS)

    def accuracy(self) -> float | None:
        """Share of right choices; None without one."""
        return float(self.right / self.samples) if int(self.samples) else None

    def result(self) -> dict[str, Any]:
        """Accuracy, how much farther than the best the chosen anchors lie, reliability and its error.

        `expected_calibration_error` is the mean distance of score and frequency over all scores.
        """
        count, total = int(self.samples), max(int(self.scored.sum()), 1)
        mean = np.divide(self.score_sums, self.scored, out=np.zeros(BINS), where=self.scored > 0)
        frequency = np.divide(self.hits, self.scored, out=np.zeros(BINS), where=self.scored > 0)
        return {
            "n": count,
            "accuracy": self.accuracy(),
            "regret_m": float(self.regret_m / count) if count else None,
            "expected_calibration_error": float((np.abs(mean - frequency) * self.scored).sum() / total),
            "reliability": {
                "score": mean.tolist(),
                "frequency": frequency.tolist(),
                "n": self.scored.tolist(),
            },
        }
