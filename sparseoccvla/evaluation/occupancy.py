"""Occupancy now: mIoU and IoU in the camera mask and RayIoU, beside the best static prior.

Labels stay as they are, in base_link at the lidar's time; the runner moved the model's points there
before they became voxels, so nobody is resampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CLASS_NAMES
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.evaluation.figures import Figures, PerScene, Said, keyframes
from sparseoccvla.evaluation.predictions import Prediction
from sparseoccvla.geometry import inverse
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.metrics.rays import RayMetric, select_origins

# What stands out of the ground and can be hit or hide something.
OBJECT_CLASSES = tuple(
    CLASS_NAMES.index(name) for name in ("car", "truck", "bus", "pedestrian", "manmade", "vegetation")
)
PRIOR = "static prior"


def score_occupancy(
    cache: SampleCache,
    runs: list[Said],
    count: int,
    prior: NDArray[np.uint8],
    lidar: dict[str, NDArray[np.float64]],
    rays_every: int,
    progress: Callable[[int], None],
) -> Figures:
    """Figures of the first `count` keyframes.

    Args:
        cache: the split.
        runs: what was said; the first is the model as it is.
        count: keyframes.
        prior: (200, 200, 16) labels that need no eyes.
        lidar: `base_from_lidar` of each scene, where RayIoU's rays begin.
        rays_every: RayIoU of every n-th keyframe; it takes fifty times as long as the rest.
        progress: called with 1 for each keyframe.
    """
    figures = Figures("occupancy", f"{Convention.OCC3D}/{Mask.CAMERA}_mask; RayIoU without mask")
    voxels, rays = PerScene(lambda: OccupancyMetric(Mask.CAMERA, Convention.OCC3D)), PerScene(RayMetric)
    for scene, indices, said in keyframes(cache, runs, count):
        for place, index in enumerate(indices):
            rows = {name: predictions[place] for name, predictions in said.items()}
            try:
                grids = {name: _grid(row) for name, row in rows.items()} | {PRIOR: prior}
                label = cache.occupancy(index)
                if label is None:
                    raise UnscorableError("the data set has no occupancy label")
                for name, grid in grids.items():
                    voxels.at(name, scene).update(grid, label.semantics, label.camera_mask)
                figures.n += 1
                if index % rays_every == 0:
                    origins = _origins(cache, indices, index, lidar[scene])
                    for name, grid in grids.items():
                        rays.at(name, scene).update(grid, label.semantics, origins)
            except UnscorableError as error:
                figures.skip(cache.tokens[index], error)
            progress(1)
    figures.require_items()
    for row in voxels.rows:
        pooled = voxels.pooled(row)
        result = pooled.result()
        seen_by_rays = rays.pooled(row).result() if row in rays.rows else {}
        figures.rows[row] = {
            **result,
            "mIoU_objects": objects(pooled),
            "rays_keyframes": int(rays.pooled(row).samples) if row in rays.rows else 0,
            **seen_by_rays,
            "confusion": pooled.confusion.tolist(),
        }
    for row in [name for name in voxels.rows if name != PRIOR]:
        figures.differences[f"{row} - {PRIOR}"] = voxels.differences(
            row, PRIOR, {"mIoU": _miou, "mIoU_objects": objects}
        )
        base = figures.rows[PRIOR]["mIoU"]
        if base:
            figures.rows[row]["mIoU_over_prior"] = figures.rows[row]["mIoU"] / base
    return figures


def objects(metric: OccupancyMetric) -> float | None:
    """Mean IoU of `OBJECT_CLASSES`; None if nobody has any."""
    values = [metric.result()["per_class_iou"][label] for label in OBJECT_CLASSES]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _miou(metric: OccupancyMetric) -> float | None:
    value: float | None = metric.result()["mIoU"]
    return value


def _grid(prediction: Prediction) -> NDArray[np.uint8]:
    if prediction.failure or prediction.occupancy is None:
        raise UnscorableError(prediction.failure or "there is no prediction")
    return prediction.occupancy.dense()


def _origins(
    cache: SampleCache, indices: list[int], index: int, base_from_lidar: NDArray[Any]
) -> NDArray[np.float64]:
    """Where the lidar was at the keyframes of a scene, in base_link at the label's time of one of them."""
    odom_from_label = {i: cache.odom_from_base(i) @ cache.truth(i).base_from_label for i in indices}
    label_from_odom = inverse(odom_from_label[index])
    return select_origins(
        np.stack([(label_from_odom @ odom_from_label[i] @ base_from_lidar)[:3, 3] for i in indices])
    )
