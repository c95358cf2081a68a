"""mIoU and IoU of voxel grids, by mask and by what an absent class counts.

Sources: CVPR2023-3D-Occupancy-Prediction `occ_metrics.py` (occ3d), SparseOcc and OPUS `old_metrics.py`
(sparseocc), SparseWorld (sparseworld), OccWorld `metric_util.py` (occworld). All sum a confusion matrix
over the data set first; they differ in what a class without ground truth is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CLASS_NAMES, FREE_CLASS, MOVABLE_CLASSES, NUM_CLASSES
from sparseoccvla.metrics.additive import STATE, Additive, UnscorableError, zeros

IGNORED = 255
_LABELS = NUM_CLASSES + 1


class Mask(StrEnum):
    """Which voxels count."""

    CAMERA = "camera"
    LIDAR = "lidar"
    NONE = "none"


class Convention(StrEnum):
    """What a class without ground truth in the counted voxels is worth.

    occ3d and sparseworld: nothing if nobody predicts it, else 0. sparseocc: nothing, always.
    occworld: 1, always.
    """

    OCC3D = "occ3d"
    SPARSEOCC = "sparseocc"
    SPARSEWORLD = "sparseworld"
    OCCWORLD = "occworld"


@dataclass
class OccupancyMetric(Additive):
    """Confusion of labels 0..17 over voxels that count.

    Args:
        mask: recorded with the result; `update` is given the mask itself.
        convention: see `Convention`.
    """

    mask: Mask = Mask.CAMERA
    convention: Convention = Convention.OCC3D
    confusion: NDArray[np.int64] = field(
        default_factory=zeros((_LABELS, _LABELS), np.int64), metadata=STATE
    )  # rows ground truth
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)

    def update(
        self,
        predicted: NDArray[np.integer],
        truth: NDArray[np.integer],
        counted: NDArray[np.bool_] | None,
    ) -> None:
        """Add one grid.

        Args:
            predicted: labels 0..17, any shape.
            truth: labels of the same shape; 255 is ignored.
            counted: which voxels count, same shape; None exactly when `mask` is NONE.

        Raises:
            UnscorableError: shapes differ, labels out of range, or the mask is missing.
        """
        self.confusion = self.confusion + confusion(predicted, truth, counted_mask(self.mask, counted))
        self.samples = self.samples + 1

    def result(self) -> dict[str, Any]:
        """The mIoU over 17 classes, IoU of occupied and of free, IoU per class (free last), all fractions.

        None stands for a class that is left out, or for a mean of nothing.
        """
        per_class = class_iou(self.confusion, self.convention)
        binary = np.array(
            [
                [
                    self.confusion[:FREE_CLASS, :FREE_CLASS].sum(),
                    self.confusion[:FREE_CLASS, FREE_CLASS].sum(),
                ],
                [self.confusion[FREE_CLASS, :FREE_CLASS].sum(), self.confusion[FREE_CLASS, FREE_CLASS]],
            ]
        )
        occupied, free = class_iou(binary, self.convention)
        return {
            "mIoU": mean_of(per_class[:NUM_CLASSES]),
            "mIoU_movable": mean_of(per_class[list(MOVABLE_CLASSES)]),
            "IoU": number(occupied),
            "IoU_free": number(free),
            "per_class_iou": [number(value) for value in per_class],
            "per_class_voxels": self.confusion.sum(axis=1).tolist(),
        }


def counted_mask(mask: Mask, counted: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """The mask, if there is one exactly where the convention asks for one.

    Raises:
        UnscorableError: the mask is missing.
        ValueError: a mask came with Mask.NONE; it would have been ignored.
    """
    if mask is Mask.NONE and counted is not None:
        raise ValueError("a mask was given although the metric counts every voxel; pass None")
    if mask is not Mask.NONE and counted is None:
        raise UnscorableError(
            f"mask_{mask} is missing, wanted one bit for each voxel; or score with mask none"
        )
    return counted


def confusion(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], counted: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """(18, 18) counts, rows ground truth, columns prediction, over voxels that count and aren't ignored."""
    check_labels(predicted, truth)
    if counted is not None:
        if counted.shape != truth.shape:
            raise UnscorableError(f"the mask has shape {counted.shape}, the ground truth {truth.shape}")
        predicted, truth = predicted[counted], truth[counted]
    # 8-bit labels: a 16-bit code is a third of the memory traffic of numpy's default integer.
    code = truth.astype(np.uint16).ravel()
    code *= 256
    code += predicted.astype(np.uint16).ravel()
    counts = np.bincount(code, minlength=256 * 256).reshape(256, 256)
    return counts[:_LABELS, :_LABELS].astype(np.int64)


def check_labels(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    """Raise `UnscorableError` unless both are integer grids of one shape, labels 0..17 (truth also 255)."""
    if predicted.shape != truth.shape:
        raise UnscorableError(f"the prediction has shape {predicted.shape}, the ground truth {truth.shape}")
    if truth.size == 0:
        raise UnscorableError(f"the grids have shape {truth.shape}, wanted voxels")
    for name, grid in (("prediction", predicted), ("ground truth", truth)):
        if grid.dtype.kind == "f" and not np.isfinite(grid).all():
            raise UnscorableError(
                f"the {name} has {int((~np.isfinite(grid)).sum())} values that are not finite"
            )
        if grid.dtype.kind not in "iu":
            raise UnscorableError(f"the {name} has dtype {grid.dtype}, wanted integer labels")
    low, high = int(predicted.min()), int(predicted.max())
    if low < 0 or high > FREE_CLASS:
        raise UnscorableError(f"the prediction holds labels {low}..{high}, wanted 0..{FREE_CLASS}")
    wrong = (truth != IGNORED) & ((truth < 0) | (truth > FREE_CLASS))
    if wrong.any():
        raise UnscorableError(
            f"the ground truth holds label {int(truth[wrong][0])}, wanted 0..{FREE_CLASS} or {IGNORED}"
        )


def class_iou(counts: NDArray[np.int64], convention: Convention) -> NDArray[np.float64]:
    """IoU of each row and column of a confusion matrix; NaN where the convention leaves a class out."""
    hit = np.diag(counts).astype(float)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hit
    iou = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    match convention:
        case Convention.OCC3D | Convention.SPARSEWORLD:
            return iou
        case Convention.SPARSEOCC:
            return np.where(truth > 0, iou, np.nan)
        case Convention.OCCWORLD:
            return np.where(truth > 0, iou, 1.0)


def mean_of(values: NDArray[np.float64]) -> float | None:
    """Mean of what is not NaN, None if there is nothing."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else None


def number(value: float | np.floating) -> float | None:
    """A float for JSON: None for NaN."""
    return None if np.isnan(value) else float(value)


def named(per_class: list[float | None]) -> dict[str, float | None]:
    """Class names to values, for tables."""
    return dict(zip((*CLASS_NAMES, "free"), per_class, strict=True))
