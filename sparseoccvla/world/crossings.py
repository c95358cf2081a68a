"""Where paths cross or merge, and who waits there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.world.curves import Path

WIDTH_M = 2.7  # paths nearer than this are in each other's way
_STEP_M = 1.0


@dataclass(frozen=True)
class Crossing:
    """A stretch of one path that a vehicle on another one also uses."""

    own_m: tuple[float, float]
    other_m: tuple[float, float]


def crossing_of(own: Path, other: Path) -> Crossing | None:
    """The first stretch that two paths share after coming from different directions, if any.

    Paths that begin in the same lane never cross: whoever is ahead there leads.
    """
    a = own.at(np.arange(0, own.length_m, _STEP_M))
    b = other.at(np.arange(0, other.length_m, _STEP_M))
    near = ((a[:, None, :2] - b[None, :, :2]) ** 2).sum(axis=-1) < WIDTH_M**2
    turned = np.abs((a[:, None, 2] - b[None, :, 2] + np.pi) % (2 * np.pi) - np.pi)
    across = near & (turned > np.deg2rad(20))
    if not across.any():
        return None
    i, j = np.nonzero(across)
    return Crossing(
        (float(i.min()) * _STEP_M, float(i.max()) * _STEP_M),
        (float(j.min()) * _STEP_M, float(j.max()) * _STEP_M),
    )


@dataclass(frozen=True)
class Lane:
    """A path prepared for finding what is on it: its vertices two meters apart."""

    path: Path

    @cached_property
    def _vertices(self) -> NDArray[np.float64]:
        return self.path.at(np.arange(0, self.path.length_m + 2.0, 2.0))

    def locate(self, poses: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
        """Station, offset and relative heading (N,) of poses (N, 3)."""
        vertices = self._vertices
        dx = poses[:, None, 0] - vertices[:, 0]
        dy = poses[:, None, 1] - vertices[:, 1]
        nearest = (dx * dx + dy * dy).argmin(axis=1)
        rows = np.arange(len(poses))
        yaw = vertices[nearest, 2]
        c, s = np.cos(yaw), np.sin(yaw)
        along = c * dx[rows, nearest] + s * dy[rows, nearest]
        across = -s * dx[rows, nearest] + c * dy[rows, nearest]
        turned = (poses[:, 2] - yaw + np.pi) % (2 * np.pi) - np.pi
        return nearest * 2.0 + along, across, turned
