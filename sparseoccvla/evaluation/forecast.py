"""Occupancy 1, 2 and 3 s ahead, beside rows that let everything stay where it is.

Truth is the label of a later keyframe in its own base_link; every row is read there through the same
logged motion, so that what differs is the forecast alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FORECAST_HORIZONS_S, HISTORY_INTERVAL_S
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.evaluation.figures import Figures, PerScene, Said, keyframes
from sparseoccvla.evaluation.predictions import Prediction
from sparseoccvla.geometry import inverse
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.baselines import persistence
from sparseoccvla.metrics.forecasting import EgoMotion, ForecastMetric

STAYS = "persistence"  # of what the model sees now
TRUE_STAYS = "persistence of the true present"  # an upper bound: it knows the present perfectly
PRIOR = "static prior"
_STEPS = tuple(round(horizon / HISTORY_INTERVAL_S) for horizon in FORECAST_HORIZONS_S)


def score_forecast(
    cache: SampleCache,
    runs: list[Said],
    count: int,
    prior: NDArray[np.uint8],
    progress: Callable[[int], None],
) -> Figures:
    """Figures of the first `count` keyframes; see `score_occupancy` for the arguments."""
    figures = Figures("forecast", f"sparseworld/no_mask, ego motion {EgoMotion.LOGGED}")
    metrics = PerScene(lambda: ForecastMetric(EgoMotion.LOGGED))
    for scene, indices, said in keyframes(cache, runs, count):
        for place, index in enumerate(indices):
            rows = {name: predictions[place] for name, predictions in said.items()}
            try:
                _score(cache, indices[place:], rows, runs[0].name, prior, scene, metrics)
                figures.n += 1
            except UnscorableError as error:
                figures.skip(cache.tokens[index], error)
            progress(1)
    figures.require_items()
    for row in metrics.rows:
        figures.rows[row] = metrics.pooled(row).result()
    model = runs[0].name
    wanted = {
        f"{name}_{horizon:g}s": _figure(name, place)
        for name in ("mIoU", "mIoU_movable", "IoU")
        for place, horizon in enumerate(FORECAST_HORIZONS_S)
        if figures.rows[model][f"{horizon:g}s"][name] is not None
    }
    figures.differences[f"{model} - {STAYS}"] = metrics.differences(model, STAYS, wanted)
    return figures


def _figure(name: str, place: int) -> Callable[[ForecastMetric], float | None]:
    def figure(metric: ForecastMetric) -> float | None:
        value: float | None = metric.steps[place].result()[name]
        return value

    return figure


def _score(
    cache: SampleCache,
    later: Sequence[int],
    rows: dict[str, Prediction],
    model: str,
    prior: NDArray[np.uint8],
    scene: str,
    metrics: PerScene[ForecastMetric],
) -> None:
    """One keyframe, the first of `later`, which are those of its scene from it on."""
    index, truth = later[0], cache.truth(later[0])
    if len(later) <= _STEPS[-1]:
        raise UnscorableError(f"no keyframe {FORECAST_HORIZONS_S[-1]:g} s later in the scene")
    future = [later[step] for step in _STEPS]
    present, labels = cache.occupancy(index), [cache.occupancy(i) for i in future]
    if present is None or any(label is None for label in labels):
        raise UnscorableError("the data set has no occupancy label now or later")
    truths = [label.semantics for label in labels if label is not None]
    base_from_odom = inverse(cache.odom_from_base(index))
    motions = [base_from_odom @ cache.odom_from_base(i) @ cache.truth(i).base_from_label for i in future]
    # What stands in base_link at the label's time, a moment after t0, moves by that much less.
    from_label = [inverse(truth.base_from_label) @ motion for motion in motions]
    still = [np.eye(4) for _ in future]
    forecasts: dict[str, tuple[Sequence[NDArray[Any]], list[NDArray[np.float64]]]] = {}
    for name, row in rows.items():
        if row.failure or not row.forecast:
            raise UnscorableError(row.failure or "there is no prediction")
        forecasts[name] = ([step.dense() for step in row.forecast], motions)
    seen = rows[model].occupancy
    assert seen is not None
    forecasts[STAYS] = (persistence(seen.dense()), from_label)
    forecasts[TRUE_STAYS] = (persistence(present.semantics), from_label)
    forecasts[PRIOR] = (persistence(prior), still)
    for name, (grids, present_from_future) in forecasts.items():
        metrics.at(name, scene).update(grids, truths, present_from_future)
