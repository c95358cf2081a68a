"""The worst moments as pictures: what the camera saw, what the model took it for, where it wanted to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.evaluation.predictions import PredictionStore
from sparseoccvla.evaluation.runner import by_scene
from sparseoccvla.palette import CLASS_COLORS_RGB

mpl.use("Agg")
from matplotlib import pyplot as plt

WORST = "worst.png"
MOMENTS = 4
_NOTHING_RGB = (245, 245, 245)


def write_worst(
    out: Path, cache: SampleCache, store: PredictionStore, errors_m: dict[int, float], count: int
) -> None:
    """Write worst.png: the keyframes whose plan is farthest off at 3 s, at most one of each scene.

    Args:
        out: folder.
        cache: the split.
        store: what the model said.
        errors_m: by place in the split, distance at 3 s.
        count: keyframes that were asked.
    """
    places = {
        index: (scene, place)
        for scene, indices in by_scene([cache.truth(index) for index in range(count)]).items()
        for place, index in enumerate(indices)
    }
    chosen: dict[str, int] = {}
    for index in sorted(errors_m, key=lambda index: -errors_m[index]):
        chosen.setdefault(places[index][0], index)
    moments = list(chosen.values())[:MOMENTS]
    figure, panels = plt.subplots(
        len(moments), 3, figsize=(12, 3.4 * len(moments)), squeeze=False, width_ratios=(1.8, 1, 1)
    )
    for row, index in zip(panels, moments, strict=True):
        scene, place = places[index]
        truth, prediction = cache.truth(index), store.read(scene)[place]
        [inputs] = cache.history(index)
        assert inputs is not None
        row[0].imshow(inputs.images_rgb[0])
        row[0].set_title(f"{scene}, {errors_m[index]:.1f} m off at 3 s, {truth.command.name}", fontsize=9)
        row[0].axis("off")
        seen = prediction.occupancy.dense() if prediction.occupancy is not None else None
        label = cache.occupancy(index)
        plan = prediction.plan.trajectory if prediction.plan is not None else None
        for axes, labels, title in (
            (row[1], seen, "what the model saw"),
            (row[2], label.semantics if label is not None else None, "what was there"),
        ):
            _from_above(axes, labels)
            axes.plot(-truth.future[:, 1], truth.future[:, 0], color="black", marker=".", label="driven")
            if plan is not None:
                axes.plot(-plan[:, 1], plan[:, 0], color="red", marker=".", label="planned")
            axes.set_title(title, fontsize=9)
        row[2].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(out / WORST, dpi=70, metadata={"Software": None})
    plt.close(figure)


def _from_above(axes: Any, labels: NDArray[np.integer] | None) -> None:
    """The highest occupied voxel of each column, ahead upward and left to the left, meters."""
    low, high = OCC3D_GRID.min_m, OCC3D_GRID.max_m
    picture = np.full((*OCC3D_GRID.shape[:2], 3), _NOTHING_RGB, np.uint8)
    if labels is not None:
        occupied = labels != FREE_CLASS
        top = OCC3D_GRID.shape[2] - 1 - occupied[:, :, ::-1].argmax(axis=2)
        highest = np.take_along_axis(labels, top[..., None], axis=2)[..., 0]
        any_there = occupied.any(axis=2)
        picture[any_there] = CLASS_COLORS_RGB[highest[any_there]]
    # Rows are x from behind to ahead, columns y from right to left: turned so that ahead is up.
    axes.imshow(picture[::-1, ::-1], extent=(-high[1], -low[1], low[0], high[0]))
    axes.set_xticks([])
    axes.set_yticks([])
