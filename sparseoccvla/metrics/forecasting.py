"""Occupancy 1, 2 and 3 s ahead against what was there, in each future frame of the vehicle.

The field scores the whole grid without a mask in the vehicle's frame of that future moment (OccWorld,
SparseWorld). Our forecast stands in base_link at t0 and knows no ego motion, so it is looked up through
one, and the result names which: `logged` (where the vehicle really went, as published evaluations have
it), `plan` (the model's own) or `none` (the truth was moved to t0 already).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FORECAST_HORIZONS_S, FREE_CLASS, OCC3D_GRID, VoxelGrid
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric


class EgoMotion(StrEnum):
    """Through whose motion a forecast in base_link at t0 is moved to a future base_link."""

    LOGGED = "logged"
    PLAN = "plan"
    NONE = "none"


def regrid(
    labels: NDArray[np.integer], present_from_future: NDArray[np.floating], grid: VoxelGrid = OCC3D_GRID
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """A grid of labels in base_link at t0, read at the voxel centers of a future base_link.

    Args:
        labels: (X, Y, Z) in base_link at t0.
        present_from_future: 4x4, takes points of the future base_link to base_link at t0.
        grid: of both.

    Returns:
        Labels (X, Y, Z) in the future frame, free where nothing was forecast, and where something was.
    """
    if np.array_equal(present_from_future, np.eye(4)):
        return labels.copy(), np.ones(grid.shape, bool)
    # Centers form a lattice: each coordinate of the moved ones is a sum of three vectors, one for an axis.
    # What lies outside falls into a rim of free voxels, so that one look-up does for all.
    x, y, z = (
        lo + (np.arange(n) + 0.5) * grid.voxel_size_m for lo, n in zip(grid.min_m, grid.shape, strict=True)
    )
    flat = np.zeros(grid.shape, np.int32)
    for row, lo, n in zip(np.asarray(present_from_future)[:3], grid.min_m, grid.shape, strict=True):
        row = row / grid.voxel_size_m
        along_z = row[2] * z + row[3] - lo / grid.voxel_size_m + 1  # the rim is number 0
        coordinate = (row[0] * x)[:, None, None] + ((row[1] * y)[:, None] + along_z)
        np.clip(coordinate, 0, n + 1, out=coordinate)
        flat *= n + 2
        flat += coordinate.astype(np.int32)
    rimmed = np.pad(labels, 1, constant_values=FREE_CLASS)
    within = np.pad(np.ones(grid.shape, bool), 1)
    return rimmed.ravel()[flat], within.ravel()[flat]


@dataclass
class ForecastMetric:
    """One `OccupancyMetric` for each horizon."""

    ego_motion: EgoMotion
    mask: Mask = Mask.NONE
    convention: Convention = Convention.SPARSEWORLD
    horizons_s: tuple[float, ...] = FORECAST_HORIZONS_S
    steps: tuple[OccupancyMetric, ...] = field(init=False)
    covered: float = 0.0  # sum over samples and horizons of the share of voxels the forecast reaches

    def __post_init__(self) -> None:
        self.steps = tuple(OccupancyMetric(self.mask, self.convention) for _ in self.horizons_s)

    def update(
        self,
        forecasts: Sequence[NDArray[np.integer]],
        truths: Sequence[NDArray[np.integer]],
        present_from_future: Sequence[NDArray[np.floating]],
        counted: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> None:
        """Add one sample.

        Args:
            forecasts: for each horizon labels (X, Y, Z) in base_link at t0.
            truths: for each horizon labels (X, Y, Z) in base_link at that moment.
            present_from_future: for each horizon the 4x4 that `ego_motion` names, identity for NONE.
            counted: for each horizon the mask that `mask` names; left out for Mask.NONE.

        Raises:
            UnscorableError: see `OccupancyMetric.update`; nothing is added then.
        """
        staged = self.empty()
        masks = counted if counted is not None else [None] * len(staged.steps)
        for step, forecast, truth, motion, mask in zip(
            staged.steps, forecasts, truths, present_from_future, masks, strict=True
        ):
            moved, inside = regrid(forecast, motion)
            step.update(moved, truth, mask)
            staged.covered += float(inside.mean())
        self.merge(staged)

    def merge(self, other: Self, times: int = 1) -> None:
        """Add another metric's samples, `times` over."""
        if self.ego_motion is not other.ego_motion:
            raise ValueError(
                f"cannot add a forecast through {other.ego_motion} to one through {self.ego_motion}"
            )
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.merge(theirs, times)
        self.covered += times * other.covered

    def empty(self) -> Self:
        return type(self)(self.ego_motion, self.mask, self.convention, self.horizons_s)

    def result(self) -> dict[str, Any]:
        """For each horizon what `OccupancyMetric.result` gives, and the means of mIoU and IoU over them."""
        results = [step.result() for step in self.steps]
        figures: dict[str, Any] = {f"{h:g}s": r for h, r in zip(self.horizons_s, results, strict=True)}
        for name in ("mIoU", "mIoU_movable", "IoU"):
            values = [r[name] for r in results if r[name] is not None]
            figures[f"{name}_avg"] = float(np.mean(values)) if values else None
        samples = int(self.steps[0].samples)
        figures["covered"] = self.covered / (samples * len(self.steps)) if samples else None
        return figures
