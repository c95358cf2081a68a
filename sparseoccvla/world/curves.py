"""Curves in the plane: centerlines of lines and arcs, and the paths that vehicles follow.

Stations `s_m` run along a curve, offsets `d_m` are positive to its left. Angles are counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

PATH_STEP_M = 0.5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Centerline:
    """Lines and circular arcs joined with a common tangent; the ends go on as straight lines or arcs.

    `curvatures_per_m` and `lengths_m` have one entry for each piece.
    """

    start: tuple[float, float, float]  # x_m, y_m, yaw_rad
    lengths_m: tuple[float, ...]
    curvatures_per_m: tuple[float, ...]

    @cached_property
    def _pieces(self) -> Array:
        """(pieces, 5): x, y, yaw, curvature and station where each piece starts."""
        x, y, yaw = self.start
        s = 0.0
        rows = []
        for length, curvature in zip(self.lengths_m, self.curvatures_per_m, strict=True):
            rows.append((x, y, yaw, curvature, s))
            chord = length * np.sinc(curvature * length / (2 * np.pi))
            x += chord * np.cos(yaw + curvature * length / 2)
            y += chord * np.sin(yaw + curvature * length / 2)
            yaw += curvature * length
            s += length
        return np.array(rows)

    @property
    def length_m(self) -> float:
        return sum(self.lengths_m)

    def heading_rad(self, s_m: ArrayLike) -> Array:
        """Tangent direction (...) at stations (...)."""
        s = np.asarray(s_m, float)
        piece = self._pieces[self._piece_of(s)]
        return piece[..., 2] + piece[..., 3] * (s - piece[..., 4])

    def point_m(self, s_m: ArrayLike, d_m: ArrayLike = 0.0) -> Array:
        """Points (..., 2) at stations and offsets."""
        s = np.asarray(s_m, float)
        piece = self._pieces[self._piece_of(s)]
        along = s - piece[..., 4]
        turned = piece[..., 3] * along
        chord = along * np.sinc(turned / (2 * np.pi))
        middle, heading = piece[..., 2] + turned / 2, piece[..., 2] + turned
        d = np.asarray(d_m, float)
        x = piece[..., 0] + chord * np.cos(middle) - d * np.sin(heading)
        y = piece[..., 1] + chord * np.sin(middle) + d * np.cos(heading)
        return np.stack(np.broadcast_arrays(x, y), axis=-1)

    def frenet(self, points_m: NDArray[np.floating]) -> tuple[Array, Array]:
        """Station and offset (...) of points (..., 2): those of the nearest piece, in closed form."""
        best = np.full(points_m.shape[:-1], np.inf)
        station, offset = np.zeros_like(best), np.zeros_like(best)
        last = len(self.lengths_m) - 1
        for number, (x, y, yaw, curvature, s0) in enumerate(self._pieces):
            along, across = _local(points_m, x, y, yaw)
            if curvature == 0:
                s, d = along, across
            else:
                # Seen from the center of the circle, which lies 1/curvature to the left.
                sign, radius = np.sign(curvature), 1 / abs(curvature)
                d = sign * (radius - np.hypot(along, across - 1 / curvature))
                s = radius * np.arctan2(along, radius - sign * across)
            low = -np.inf if number == 0 else 0.0
            high = np.inf if number == last else self.lengths_m[number]
            beyond = np.maximum(np.maximum(low - s, s - high), 0)
            distance = np.hypot(beyond, d)
            nearer = distance < best
            best = np.where(nearer, distance, best)
            station = np.where(nearer, s0 + s, station)
            offset = np.where(nearer, d, offset)
        return station, offset

    def _piece_of(self, s_m: Array) -> NDArray[np.intp]:
        return np.clip(np.searchsorted(self._pieces[:, 4], s_m, side="right") - 1, 0, None)


def _local(points_m: NDArray[np.floating], x_m: float, y_m: float, yaw_rad: float) -> tuple[Array, Array]:
    dx, dy = points_m[..., 0] - x_m, points_m[..., 1] - y_m
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return c * dx + s * dy, -s * dx + c * dy


@dataclass(frozen=True)
class Path:
    """A polyline with equal steps of about `PATH_STEP_M`, followed by something that moves."""

    points_m: Array  # (P, 2)
    headings_rad: Array = field(init=False)  # (P,) continuous
    curvatures_per_m: Array = field(init=False)  # (P,)
    step_m: float = field(init=False)

    def __post_init__(self) -> None:
        steps = np.diff(self.points_m, axis=0)
        heading = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
        # Vertex headings are the mean of the steps on either side.
        inner = (heading[:-1] + heading[1:]) / 2
        headings = np.concatenate([heading[:1], inner, heading[-1:]])
        step = float(np.linalg.norm(steps, axis=1).mean())
        object.__setattr__(self, "headings_rad", headings)
        object.__setattr__(self, "curvatures_per_m", np.gradient(headings, step))
        object.__setattr__(self, "step_m", step)

    @classmethod
    def through(cls, points_m: NDArray[np.floating]) -> Path:
        """Resample any polyline (N, 2) to equal steps."""
        lengths = np.linalg.norm(np.diff(points_m, axis=0), axis=1)
        keep = np.concatenate([[True], lengths > 1e-6])
        points_m = points_m[keep]
        s = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_m, axis=0), axis=1))])
        wanted = np.linspace(0, s[-1], max(round(s[-1] / PATH_STEP_M), 2) + 1)
        return cls(np.stack([np.interp(wanted, s, points_m[:, i]) for i in range(2)], axis=1))

    @property
    def length_m(self) -> float:
        return self.step_m * (len(self.points_m) - 1)

    def at(self, s_m: ArrayLike, d_m: ArrayLike = 0.0) -> Array:
        """Poses (..., 3) x_m, y_m, yaw_rad; beyond the ends the path goes on straight."""
        s = np.asarray(s_m, float)
        position = np.clip(s / self.step_m, 0, len(self.points_m) - 1)
        index = np.minimum(position.astype(int), len(self.points_m) - 2)
        part = (position - index)[..., None]
        point = (1 - part) * self.points_m[index] + part * self.points_m[index + 1]
        yaw = (1 - part[..., 0]) * self.headings_rad[index] + part[..., 0] * self.headings_rad[index + 1]
        beyond = s - position * self.step_m
        d = np.asarray(d_m, float)
        x = point[..., 0] + beyond * np.cos(yaw) - d * np.sin(yaw)
        y = point[..., 1] + beyond * np.sin(yaw) + d * np.cos(yaw)
        return np.stack(np.broadcast_arrays(x, y, yaw), axis=-1)

    def curvature_per_m(self, s_m: ArrayLike) -> Array:
        """Curvature (...) at stations (...)."""
        return np.interp(
            np.asarray(s_m, float), np.arange(len(self.points_m)) * self.step_m, self.curvatures_per_m
        )


@dataclass(frozen=True)
class Bundle:
    """Many paths of which each follower is on one; asks them all at once."""

    paths: tuple[Path, ...]  # one for each follower; the same one may come again

    @cached_property
    def _joined(self) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64], Array]:
        distinct = {id(path): path for path in self.paths}
        starts, total = {}, 0
        for key, path in distinct.items():
            starts[key], total = total, total + len(path.points_m)
        points = np.concatenate([path.points_m for path in distinct.values()] or [np.zeros((0, 2))])
        headings = np.concatenate([path.headings_rad for path in distinct.values()] or [np.zeros(0)])
        return (
            points,
            headings,
            np.array([starts[id(path)] for path in self.paths], np.int64),
            np.array([len(path.points_m) for path in self.paths], np.int64),
            np.array([path.step_m for path in self.paths]),
        )

    def at(self, s_m: Array, d_m: Array) -> Array:
        """Poses (N, 3) of N followers, as `Path.at` gives them."""
        points, headings, start, count, step = self._joined
        position = np.clip(s_m / step, 0, count - 1)
        index = np.minimum(position.astype(int), count - 2)
        part = position - index
        first = start + index
        here, after = points[first], points[first + 1]
        yaw = (1 - part) * headings[first] + part * headings[first + 1]
        beyond = s_m - position * step
        c, s = np.cos(yaw), np.sin(yaw)
        x = here[:, 0] + part * (after[:, 0] - here[:, 0]) + beyond * c - d_m * s
        y = here[:, 1] + part * (after[:, 1] - here[:, 1]) + beyond * s + d_m * c
        return np.stack([x, y, yaw], axis=1)


def fillet(start: Sequence[float], end: Sequence[float]) -> Array:
    """Points (N, 2) of the circular turn from pose `start` onto the line of pose `end`.

    The arc is tangent to both lines and as wide as the two poses allow; the rest is straight.
    Poses are (x_m, y_m, yaw_rad).

    Raises:
        ValueError: the lines are parallel.
    """
    x, y, yaw = start
    turn = (end[2] - yaw + np.pi) % (2 * np.pi) - np.pi
    if abs(np.sin(turn)) < 1e-3:
        raise ValueError(f"no turn joins lines of headings {yaw:.3f} and {end[2]:.3f} rad: they are parallel")
    # How far the lines' crossing lies ahead of the start and before the end.
    dx, dy = end[0] - x, end[1] - y
    ahead = (dx * np.sin(end[2]) - dy * np.cos(end[2])) / np.sin(turn)
    before = (dy * np.cos(yaw) - dx * np.sin(yaw)) / np.sin(turn)
    tangent = min(ahead, before)
    curvature = np.tan(turn / 2) / tangent
    bend = Centerline((x, y, yaw), (ahead - tangent, abs(turn / curvature), 1.0), (0.0, curvature, 0.0))
    length = bend.lengths_m[0] + bend.lengths_m[1]
    points = bend.point_m(np.linspace(0, length, max(int(length / PATH_STEP_M), 4) + 1))
    return np.concatenate([points, [[end[0], end[1]]]])
