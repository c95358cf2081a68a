"""Occupancy figures on a few validation samples while training goes on.

IoU and flat classes look like success on a flat world; the mean over classes that stand, and the share of
points above the ground, say whether anything is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparseoccvla.contracts import FLAT_CLASSES, FREE_CLASS, OCC3D_GRID, OccupancyPoints
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.occ3d import OccupancyLabel
from sparseoccvla.encoder import Encoder
from sparseoccvla.geometry import inverse, transform
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.training.batches import NetworkInputs, network_inputs
from sparseoccvla.voxels import VoxelRule, Voxels, drop_strays, voxelize

GROUND_BELOW_M = 0.35  # points above are off the ground plane
# Of movable and standing classes, those that are rare in no data set.
OBJECT_CLASSES = (3, 4, 7, 10, 15, 16)  # bus, car, pedestrian, truck, manmade, vegetation
_BATCH = 4


class ScoredPoints(NamedTuple):
    """What the last layer says about a sample."""

    points_m: NDArray[np.float32]  # (Q, R, 3) base_link at t0
    scores: NDArray[np.float32]  # (Q, R, 17)
    label: OccupancyLabel
    label_from_base: NDArray[np.float64]


class OccupancyCheck:
    """Scores an encoder on evenly spread samples of a split, as it drives: the same history and rule.

    Args:
        cache: of the validation split.
        samples: how many at most.
        encoder: its configuration matters only.
        precision: of autocast.
    """

    def __init__(self, cache: SampleCache, samples: int, encoder: Encoder, precision: torch.dtype) -> None:
        self._cache = cache
        self._indices = spread(len(cache), samples)
        self._frames = encoder.config.frames
        self._repeat = encoder.config.repeat_history
        self._precision = precision

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Figures; the encoder is in evaluation mode."""
        metric = OccupancyMetric(Mask.CAMERA, Convention.SPARSEOCC)
        above = total = 0
        for scored in self.scored(encoder):
            labels = voxel_labels(scored, encoder.config.voxel_rule)
            metric.update(labels, scored.label.semantics, scored.label.camera_mask)
            above += int((scored.points_m[..., 2] > GROUND_BELOW_M).sum())
            total += scored.points_m.shape[0] * scored.points_m.shape[1]
        result = metric.result()
        per_class = result["per_class_iou"]
        objects = [per_class[i] for i in OBJECT_CLASSES if per_class[i] is not None]
        flat = [per_class[i] for i in FLAT_CLASSES if per_class[i] is not None]
        return {
            "mIoU": result["mIoU"] or 0.0,
            "IoU": result["IoU"] or 0.0,
            "object_mIoU": float(np.mean(objects)) if objects else 0.0,
            "flat_mIoU": float(np.mean(flat)) if flat else 0.0,
            "points_above_ground": above / max(1, total),
        }

    def scored(self, encoder: Encoder) -> list[ScoredPoints]:
        """The last layer's points of every sample."""
        found = []
        device = encoder.initial_points.device
        for start in range(0, len(self._indices), _BATCH):
            indices = self._indices[start : start + _BATCH]
            inputs = [self._inputs(index) for index in indices]
            stacked = NetworkInputs(*(torch.stack(part).to(device) for part in zip(*inputs, strict=True)))
            with (
                torch.no_grad(),
                torch.autocast(device.type, self._precision, self._precision != torch.float32),
            ):
                decoded = encoder(
                    stacked.images_rgb.float(),
                    stacked.image_from_base,
                    stacked.base_from_image,
                    stacked.valid,
                )
            points_m = decoded.points_m[-1].float().cpu().numpy()
            scores = encoder.scores(decoded.logits[-1].float()).cpu().numpy()
            for place, index in enumerate(indices):
                label = self._cache.occupancy(index)
                if label is not None:
                    label_from_base = inverse(self._cache.truth(index).base_from_label)
                    found.append(ScoredPoints(points_m[place], scores[place], label, label_from_base))
        return found

    def _inputs(self, index: int) -> NetworkInputs:
        return network_inputs(self._cache.history(index, self._frames), self._repeat)


def voxel_labels(scored: ScoredPoints, rule: VoxelRule) -> NDArray[np.uint8]:
    """Labels (200, 200, 16) in the label's frame; points are moved, not voxels, so nothing is resampled."""
    points = drop_strays(scored.points_m, scored.scores, rule.max_spread_m)
    moved = transform(scored.label_from_base, points.points_base_m)
    return dense(voxelize(OccupancyPoints(moved, points.class_scores), rule))


def dense(voxels: Voxels) -> NDArray[np.uint8]:
    """Labels (200, 200, 16), FREE_CLASS where nothing is."""
    labels = np.full(OCC3D_GRID.shape, FREE_CLASS, np.uint8)
    labels[tuple(voxels.indices.T)] = voxels.labels
    return labels


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most)).round()})


_THRESHOLDS = (0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5)


def tuned_rule(scored: Sequence[ScoredPoints], rule: VoxelRule) -> tuple[VoxelRule, float]:
    """The rule with thresholds and flat spread that give the best mIoU on training scenes."""
    rule = replace(rule, standing_threshold=0.0)
    common = [
        replace(rule, threshold=threshold, flat_spread=flat_spread)
        for flat_spread in (0.0, 0.35, 0.5, 0.7)
        for threshold in _THRESHOLDS
    ]
    rule, value = max(((tried, _mean_iou(scored, tried)) for tried in common), key=lambda found: found[1])
    apart = [replace(rule, standing_threshold=threshold) for threshold in (0.03, *_THRESHOLDS)]
    better = max(((tried, _mean_iou(scored, tried)) for tried in apart), key=lambda found: found[1])
    return better if better[1] > value else (rule, value)


def _mean_iou(scored: Sequence[ScoredPoints], rule: VoxelRule) -> float:
    metric = OccupancyMetric(Mask.CAMERA, Convention.SPARSEOCC)
    for one in scored:
        metric.update(voxel_labels(one, rule), one.label.semantics, one.label.camera_mask)
    return metric.result()["mIoU"] or 0.0
