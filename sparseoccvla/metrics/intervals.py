"""Bootstrap intervals by scene: frames of one scene resemble each other, scenes are drawn, not frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.metrics.additive import Additive


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
    return _weighing(list(per_scene.values()))(np.ones(len(per_scene), int))


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
    found = differences_by_scene(per_scene, baseline_per_scene, {"figure": figure}, resamples, level, seed)
    return found["figure"]


def differences_by_scene[M: Metric](
    per_scene: Mapping[str, M],
    baseline_per_scene: Mapping[str, M] | None,
    figures: Mapping[str, Callable[[M], float | None]],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """`difference_by_scene` of several figures by name; drawing, which takes the time, is done once.

    Raises:
        ValueError: as `difference_by_scene`.
    """
    if not per_scene:
        raise ValueError("no scene to draw from")
    if baseline_per_scene is not None and set(per_scene) != set(baseline_per_scene):
        odd = sorted(set(per_scene) ^ set(baseline_per_scene))
        raise ValueError(f"only one of the two compared metrics has the scenes {', '.join(odd)}")
    names = sorted(per_scene)
    ours = _weighing([per_scene[name] for name in names])
    theirs = _weighing([baseline_per_scene[name] for name in names]) if baseline_per_scene else None

    def values(times: NDArray[np.integer]) -> dict[str, float | None]:
        mine = ours(times)
        base = theirs(times) if theirs is not None else None
        return {name: _difference(figure, mine, base) for name, figure in figures.items()}

    whole = values(np.ones(len(names), int))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    # Of few scenes the same are drawn again and again.
    different, place = np.unique(draws, axis=0, return_inverse=True)
    known = [values(times) for times in different]
    drawn = [known[index] for index in place.ravel()]
    found = {}
    for name, value in whole.items():
        if value is None:
            raise ValueError("the figure of all scenes together is None: a mean of nothing has no interval")
        kept = [v for draw in drawn if (v := draw[name]) is not None]
        low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
        found[name] = Interval(value, float(low), float(high), level, len(names), len(kept))
    return found


def _difference[M](figure: Callable[[M], float | None], mine: M, base: M | None) -> float | None:
    value = figure(mine)
    if value is None or base is None:
        return value
    less = figure(base)
    return None if less is None else value - less


def _weighing[M: Metric](metrics: list[M]) -> Callable[[NDArray[np.integer]], M]:
    """Adds metrics up, each as often as asked; a state that adds is a weighted sum of all at once."""

    def merged(times: NDArray[np.integer]) -> M:
        total = metrics[0].empty()
        for metric, count in zip(metrics, times, strict=True):
            if count:
                total.merge(metric, int(count))
        return total

    first = metrics[0]
    if not isinstance(first, Additive):
        return merged
    merged(np.ones(len(metrics), int))  # refuses metrics of different settings
    states = {
        item.name: np.stack([getattr(metric, item.name) for metric in metrics])
        for item in fields(first)
        if item.metadata.get("adds")
    }

    def summed(times: NDArray[np.integer]) -> M:
        total = first.empty()
        for name, state in states.items():
            setattr(total, name, np.tensordot(times, state, 1).astype(state.dtype))
        return total

    return summed
