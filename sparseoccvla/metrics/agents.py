"""Boxes of other road users over the steps of a plan, and the rasters public evaluators draw of them.

Frame here and in `planning.py`: the public one of nuScenes planners, x right, y forward, meters, origin
at the lidar at t0; yaw counter-clockwise from x. `from_base_link` brings our poses there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NUM_STEPS
from sparseoccvla.metrics.additive import UnscorableError

LIDAR_FORWARD_M = 0.985793  # nuScenes: from the rear axle to LIDAR_TOP

# VAD's category numbers of agent features.
_VAD_HUMANS, _VAD_VEHICLES = range(2, 9), range(14, 24)


class AgentKind(IntEnum):
    """What the conventions tell apart."""

    OTHER = 0  # barriers, cones, animals, debris
    HUMAN = 1
    VEHICLE = 2  # bicycles and motorcycles too


@dataclass(frozen=True)
class AgentFutures:
    """N agents at S steps."""

    centers_m: NDArray[np.float64]  # (N, S, 2)
    yaws_rad: NDArray[np.float64]  # (N, S)
    lengths_m: NDArray[np.float64]  # (N,)
    widths_m: NDArray[np.float64]  # (N,)
    kinds: NDArray[np.integer]  # (N,) AgentKind
    valid: NDArray[np.bool_]  # (N, S) False: not annotated at this step

    def corners_m(self, step: int, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(M, 4, 2) corners of the chosen agents (N,) that are annotated at a step."""
        take = chosen & self.valid[:, step]
        return box_corners(
            self.centers_m[take, step], self.yaws_rad[take, step], self.lengths_m[take], self.widths_m[take]
        )

    @classmethod
    def from_vad(cls, boxes: NDArray[np.floating], features: NDArray[np.floating]) -> AgentFutures:
        """Agents in VAD's layout.

        Args:
            boxes: (N, 9) x, y, z, width, length, height, yaw, vx, vy; yaw is -(ours) - pi/2.
            features: (N, 34) future steps (12), mask (6), goal, present state (9, the last is the
                category), yaw steps (6).
        """
        boxes, features = np.asarray(boxes, float), np.asarray(features, float)
        if boxes.ndim != 2 or boxes.shape[1] != 9 or features.shape != (len(boxes), 34):
            raise UnscorableError(
                f"agent boxes and features have shapes {boxes.shape} and {features.shape}, "
                "wanted (N, 9) and (N, 34)"
            )
        steps = features[:, :12].reshape(-1, NUM_STEPS, 2)
        category = features[:, 27].astype(int)
        return cls(
            boxes[:, None, :2] + np.cumsum(steps, axis=1),
            -(boxes[:, 6:7] + np.pi / 2) + np.cumsum(features[:, 28:34], axis=1),
            boxes[:, 4],
            boxes[:, 3],
            np.where(
                np.isin(category, _VAD_VEHICLES),
                AgentKind.VEHICLE,
                np.where(np.isin(category, _VAD_HUMANS), AgentKind.HUMAN, AgentKind.OTHER),
            ),
            features[:, 12:18] == 1,
        )


def from_base_link(
    poses_base: NDArray[np.floating], origin_forward_m: float = LIDAR_FORWARD_M
) -> NDArray[np.float64]:
    """Poses (..., 3) x_m, y_m, yaw_rad of base_link in base_link at t0, as poses in the public frame.

    What moves, and the frame's origin, lie `origin_forward_m` ahead of base_link: the lidar, or 0 for
    OmniDrive, which plans for the rear axle.
    """
    x, y, yaw = np.moveaxis(np.asarray(poses_base, float), -1, 0)
    forward = x + origin_forward_m * (np.cos(yaw) - 1)
    left = y + origin_forward_m * np.sin(yaw)
    return np.stack([-left, forward, yaw + np.pi / 2], axis=-1)


def box_corners(
    centers_m: NDArray[np.floating],
    yaws_rad: NDArray[np.floating],
    lengths_m: NDArray[np.floating] | float,
    widths_m: NDArray[np.floating] | float,
) -> NDArray[np.float64]:
    """Corners (..., 4, 2), front left, rear left, rear right, front right, of boxes with centers (..., 2)."""
    ahead = np.stack([np.cos(yaws_rad), np.sin(yaws_rad)], axis=-1) * np.expand_dims(lengths_m, -1) / 2
    left = np.stack([-np.sin(yaws_rad), np.cos(yaws_rad)], axis=-1) * np.expand_dims(widths_m, -1) / 2
    return np.stack(
        [
            centers_m + ahead + left,
            centers_m - ahead + left,
            centers_m - ahead - left,
            centers_m + ahead - left,
        ],
        axis=-2,
    )


def vad_raster(agents: AgentFutures) -> NDArray[np.bool_]:
    """(S, 200, 200) vehicles and people as VAD draws them: 0.5 m, rows from 50 m ahead, columns rightward."""
    drawn = np.isin(agents.kinds, (AgentKind.VEHICLE, AgentKind.HUMAN))
    return _raster(agents, drawn, 0.5, lambda corners: corners * (1, -1))


def omnidrive_raster(agents: AgentFutures) -> NDArray[np.bool_]:
    """(S, 1000, 1000) vehicles as OmniDrive draws them: 0.1 m, columns forward, rows leftward."""
    return _raster(
        agents, agents.kinds == AgentKind.VEHICLE, 0.1, lambda corners: corners[..., ::-1] * (1, -1)
    )


def _raster(
    agents: AgentFutures,
    drawn: NDArray[np.bool_],
    cell_m: float,
    columns_rows_m: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.bool_]:
    import cv2  # not needed by who brings rasters

    # In single precision like the originals: it decides corners that lie half way between two cells.
    cell, first = np.float32(cell_m), np.float32(-50 + cell_m / 2)
    cells = round(100 / cell_m)
    rasters = np.zeros((agents.valid.shape[1], cells, cells), np.uint8)
    for step, raster in enumerate(rasters):
        corners = (columns_rows_m(agents.corners_m(step, drawn)) - first + cell / 2) / cell
        for polygon in np.round(corners).astype(np.int32):
            cv2.fillPoly(raster, [polygon], (1,))
    return rasters.astype(bool)
