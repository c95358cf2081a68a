"""What the four kinds of figures share: rows by name and scene, intervals, and what could not be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.predictions import Prediction, PredictionStore
from sparseoccvla.evaluation.runner import by_scene
from sparseoccvla.metrics.intervals import Metric, differences_by_scene, pooled

RESAMPLES = 1000
_LISTED = 50  # skipped items by name; all are counted


@dataclass(frozen=True)
class Said:
    """Predictions of one run beside the truth, by scene."""

    name: str  # of the row: "model", "pictures shuffled", ...
    store: PredictionStore


@dataclass
class Figures:
    """Figures of one kind, as they go into a results file."""

    kind: str
    protocol: str
    n: int = 0
    rows: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, item: str, reason: object) -> None:
        self.skipped.append({"item": item, "reason": str(reason)})

    def require_items(self) -> None:
        """Raise `InputError` if nothing could be scored."""
        if not self.n:
            told = "; ".join(f"{count} x {reason}" for reason, count in self.reasons().most_common(3))
            raise InputError(f"no keyframe gives a {self.kind} figure" + (f" ({told})" if told else ""))

    def reasons(self) -> Counter[str]:
        return Counter(entry["reason"] for entry in self.skipped)

    def as_dict(self) -> dict[str, Any]:
        """The `figures` of a results file."""
        return {
            "rows": self.rows,
            "differences": self.differences,
            **self.extra,
            "skipped_reasons": dict(self.reasons()),
            "skipped_items": self.skipped[:_LISTED],
        }


class PerScene[M: Metric]:
    """One metric for each row and scene, so that scenes can be drawn."""

    def __init__(self, new: Callable[[], M]) -> None:
        self._new = new
        self._metrics: dict[str, dict[str, M]] = {}

    def at(self, row: str, scene: str) -> M:
        """The metric to update."""
        return self._metrics.setdefault(row, {}).setdefault(scene, self._new())

    @property
    def rows(self) -> list[str]:
        return list(self._metrics)

    def scenes(self, row: str) -> Mapping[str, M]:
        return self._metrics[row]

    def pooled(self, row: str) -> M:
        return pooled(self._metrics[row])

    def intervals(self, row: str, figures: Mapping[str, Callable[[M], float | None]]) -> dict[str, Any]:
        """Figures of a row with their intervals by scene."""
        found = differences_by_scene(self._metrics[row], None, figures, RESAMPLES)
        return {name: interval.as_dict() for name, interval in found.items()}

    def differences(
        self, row: str, base: str, figures: Mapping[str, Callable[[M], float | None]]
    ) -> dict[str, Any]:
        """Intervals of (row - base) on the same drawn scenes, and whether each excludes zero.

        A single scene drawn again and again has an interval of no width, which excludes nothing.
        """
        found = differences_by_scene(self._metrics[row], self._metrics[base], figures, RESAMPLES)
        return {
            name: {**interval.as_dict(), "excludes_zero": interval.excludes_zero and interval.scenes > 1}
            for name, interval in found.items()
        }


def keyframes(
    cache: SampleCache, runs: list[Said], count: int
) -> Iterator[tuple[str, list[int], dict[str, list[Prediction]]]]:
    """Scene by scene: its name, the places of its keyframes, and what each run said about them."""
    for scene, indices in by_scene([cache.truth(index) for index in range(count)]).items():
        yield scene, indices, {run.name: run.store.read(scene) for run in runs}
