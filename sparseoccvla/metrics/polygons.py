"""Plane geometry on arrays of points: rectangles, polygons and paths. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rectangles_touch(box_m: NDArray[np.floating], boxes_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether convex quadrilaterals (4, 2) or (M, 4, 2) share a point with (M, 4, 2); touching counts."""
    return convex_touch(np.broadcast_to(box_m, boxes_m.shape), boxes_m)


def convex_touch(first_m: NDArray[np.floating], second_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether convex polygons (..., A, 2) and (..., B, 2) share a point (...); touching counts.

    Two convex polygons are apart exactly if an edge of one separates them.
    """
    apart = np.zeros(first_m.shape[:-2], bool)
    for polygon in (first_m, second_m):
        edges = np.roll(polygon, -1, axis=-2) - polygon
        normals = np.stack([-edges[..., 1], edges[..., 0]], axis=-1)
        one, other = (np.einsum("...ed,...pd->...ep", normals, p) for p in (first_m, second_m))
        gap = (one.min(axis=-1) > other.max(axis=-1)) | (other.min(axis=-1) > one.max(axis=-1))
        apart |= gap.any(axis=-1)
    return ~apart


def contains(polygon_m: NDArray[np.floating], points_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether points (..., 2) lie strictly inside a simple polygon (P, 2); its border is outside."""
    x, y = points_m[..., 0, None], points_m[..., 1, None]
    (x0, y0), (x1, y1) = polygon_m.T, np.roll(polygon_m, -1, axis=0).T
    side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
    crosses = ((y0 <= y) & (y < y1) & (side > 0)) | ((y1 <= y) & (y < y0) & (side < 0))
    within = (np.minimum(x0, x1) <= x) & (x <= np.maximum(x0, x1))
    within &= (np.minimum(y0, y1) <= y) & (y <= np.maximum(y0, y1))
    on_border = ((side == 0) & within).any(axis=-1)
    return (crosses.sum(axis=-1) % 2 == 1) & ~on_border


def touches(box_m: NDArray[np.floating], polygon_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether convex quadrilaterals (..., 4, 2) share a point with a simple polygon (P, 2), touch too."""
    edges = np.stack([polygon_m, np.roll(polygon_m, -1, axis=0)], axis=1)  # (P, 2, 2)
    boxes = np.expand_dims(box_m, -3)
    crossing = convex_touch(
        np.broadcast_to(boxes, (*box_m.shape[:-2], len(edges), 4, 2)),
        np.broadcast_to(edges, (*box_m.shape[:-2], *edges.shape)),
    )
    return crossing.any(axis=-1) | contains(polygon_m, box_m[..., 0, :])


def along_path(
    path_m: NDArray[np.floating], points_m: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Arc length of the nearest place on a path (K, 2), and the distance to it, of points (..., 2)."""
    start, step = path_m[:-1], np.diff(path_m, axis=0)
    length = np.linalg.norm(step, axis=1)
    keep = length > 0
    start, step, length = start[keep], step[keep], length[keep]
    offset = points_m[..., None, :] - start
    share = np.clip((offset * step).sum(axis=-1) / length**2, 0, 1)
    distance = np.linalg.norm(offset - share[..., None] * step, axis=-1)
    nearest = distance.argmin(axis=-1)[..., None]
    before = np.concatenate([[0.0], np.cumsum(length)[:-1]])
    arc = before + share * length
    return (
        np.take_along_axis(arc, nearest, axis=-1)[..., 0],
        np.take_along_axis(distance, nearest, axis=-1)[..., 0],
    )
