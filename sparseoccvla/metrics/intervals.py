"""Bootstrap intervals by scene: frames of one scene resemble each other, scenes are drawn, not frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Metric(Protocol):
    """What `by_scene` needs of an accumulator; all of `sparseoccvla.metrics` have it."""

    def merge(self, other: Self, times: int = 1) -> None: ...

    def empty(self) -> Self: ...

    def result(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Interval:
    """A figure and the percentile interval of its bootstrap distribution."""

    value: float
    low: float
    high: float
    level: float
    scenes: int
    resamples: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def pooled[M: Metric](per_scene: Mapping[str, M]) -> M:
    """All scenes as one metric."""
    return _weighted(list(per_scene.values()), np.ones(len(per_scene), int))


def by_scene[M: Metric](
    per_scene: Mapping[str, M],
    figure: Callable[[M], float | None],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a figure of the pooled metric.

    Args:
        per_scene: one metric for each scene.
        figure: takes the figure from a metric, e.g. ``lambda m: m.result()["mIoU"]``. None (a mean of
            nothing, as in a resample that lacks a rare class everywhere) leaves a resample out.
        resamples: number of draws of as many scenes as there are, with replacement.
        level: share of resamples inside.
        seed: of the draws; the same seed and number of scenes draw the same scenes.

    Raises:
        ValueError: no scene, or the figure of all scenes together is None.
    """
    return difference_by_scene(per_scene, None, figure, resamples, level, seed)


def difference_by_scene[M: Metric](
    per_scene: Mapping[str, M],
    baseline_per_scene: Mapping[str, M] | None,
    figure: Callable[[M], float | None],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of (figure - the baseline's figure), both on the same drawn scenes.

    Raises:
        ValueError: no scene, the two cover different scenes, or a figure of all scenes is None.
    """
    if not per_scene:
        raise ValueError("no scene to draw from")
    if baseline_per_scene is not None and set(per_scene) != set(baseline_per_scene):
        odd = sorted(set(per_scene) ^ set(baseline_per_scene))
        raise ValueError(f"only one of the two compared metrics has the scenes {', '.join(odd)}")
    names = sorted(per_scene)
    ours = [per_scene[name] for name in names]
    theirs = [baseline_per_scene[name] for name in names] if baseline_per_scene is not None else None

    def value(times: NDArray[np.integer]) -> float | None:
        mine = figure(_weighted(ours, times))
        if mine is None or theirs is None:
            return mine
        base = figure(_weighted(theirs, times))
        return None if base is None else mine - base

    whole = value(np.ones(len(names), int))
    if whole is None:
        raise ValueError("the figure of all scenes together is None: a mean of nothing has no interval")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    values = [v for times in drawn if (v := value(times)) is not None]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high), level, len(names), len(values))


def _weighted[M: Metric](metrics: list[M], times: NDArray[np.integer]) -> M:
    total = metrics[0].empty()
    for metric, count in zip(metrics, times, strict=True):
        if count:
            total.merge(metric, int(count))
    return total
