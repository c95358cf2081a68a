"""What things are made of: flat convex faces.

An object's frame has its origin on the ground under its center, x forward, y left, z up. Faces are listed
counter-clockwise as seen from outside; a triangle repeats its last vertex. Colors are sRGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Color = tuple[float, float, float]


class Material(IntEnum):
    """How a face is shaded."""

    PLAIN = 0
    GLASS = 1
    FACADE = 2  # windows on a grid
    FOLIAGE = 3
    BRAKE = 4  # glows while its vehicle brakes
    LAMP = 5  # glows in the dark
    ROOF = 6
    STRIPES = 7  # warning stripes
    GROUND = 8
    LEFT_SIGNAL = 9
    RIGHT_SIGNAL = 10


@dataclass
class Body:
    """Faces with color and material."""

    chunks: list[tuple[Array, Array, NDArray[np.uint8]]] = field(default_factory=list)

    @property
    def faces(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """Corners (P, 4, 3), colors (P, 3) and materials (P,) of all faces."""
        vertices, colors, materials = zip(*self.chunks, strict=True)
        return (
            np.concatenate(vertices).astype(np.float32),
            np.concatenate(colors).astype(np.float32),
            np.concatenate(materials),
        )

    def face(self, points_m: ArrayLike, color: Color, material: Material = Material.PLAIN) -> None:
        """A convex polygon of three or more points; more than four become several faces."""
        points = np.asarray(points_m, float)
        last = len(points) - 1
        corners = np.array([(0, i, i + 1, min(i + 2, last)) for i in range(1, last, 2)])
        self.add(points[corners], np.array(color)[None].repeat(len(corners), axis=0), material)

    def add(self, vertices_m: Array, colors: Array, material: Material) -> None:
        """Faces (P, 4, 3) with colors (P, 3)."""
        self.chunks.append((vertices_m, colors, np.full(len(vertices_m), material, np.uint8)))

    def box(
        self,
        center_m: Sequence[float],
        size_m: Sequence[float],
        color: Color,
        material: Material = Material.PLAIN,
        *,
        top: Color | None = None,
        yaw_rad: float = 0.0,
        pitch_rad: float = 0.0,
        open_bottom: bool = True,
    ) -> None:
        """A box; its bottom is left out unless asked for, since nobody sees it."""
        half = np.asarray(size_m, float) / 2
        signs = np.array([[x, y, z] for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
        points = signs * half
        c, s = np.cos(pitch_rad), np.sin(pitch_rad)
        points = points @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        points = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.asarray(center_m, float)
        for corner in ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)):
            self.face(points[list(corner)], color, material)
        self.face(points[[4, 5, 6, 7]], top or color, Material.PLAIN if top else material)
        if not open_bottom:
            self.face(points[[3, 2, 1, 0]], color)

    def prism(
        self,
        profile_m: ArrayLike,
        half_width_m: float,
        top_half_width_m: float,
        color: Color,
        material: Material = Material.PLAIN,
        *,
        y_m: float = 0.0,
    ) -> None:
        """A convex side view (K, 2) of x and z, counter-clockwise, swept across y.

        The half width narrows linearly from the lowest to the highest point.
        """
        profile = np.asarray(profile_m, float)
        z = profile[:, 1]
        part = (z - z.min()) / (z.max() - z.min())
        half = half_width_m + (top_half_width_m - half_width_m) * part
        right = np.stack([profile[:, 0], y_m - half, z], axis=1)
        left = np.stack([profile[:, 0], y_m + half, z], axis=1)
        self.face(right, color, material)
        self.face(left[::-1], color, material)
        for i in range(len(profile)):
            j = (i + 1) % len(profile)
            if abs(z[i] - z.min()) < 1e-9 and abs(z[j] - z.min()) < 1e-9:
                continue  # the bottom
            self.face([right[j], right[i], left[i], left[j]], color, material)

    def column(
        self,
        base_m: Sequence[float],
        radius_m: float,
        height_m: float,
        color: Color,
        *,
        top_radius_m: float | None = None,
        sides: int = 6,
        material: Material = Material.PLAIN,
    ) -> None:
        """A standing cylinder or cone with flat sides."""
        angle = 2 * np.pi * np.arange(sides) / sides
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        base = np.asarray(base_m, float)
        top_radius = radius_m if top_radius_m is None else top_radius_m
        low = np.concatenate([ring * radius_m, np.zeros((sides, 1))], axis=1) + base
        high = np.concatenate([ring * top_radius, np.full((sides, 1), height_m)], axis=1) + base
        for i in range(sides):
            j = (i + 1) % sides
            self.face([low[i], low[j], high[j], high[i]], color, material)
        if top_radius > 0.02:
            self.face(high, color, material)

    def wheel(self, center_m: Sequence[float], radius_m: float, width_m: float, color: Color) -> None:
        """A wheel that rolls along x, with a lighter rim on both faces."""
        angle = 2 * np.pi * (np.arange(8) + 0.5) / 8
        ring = np.stack([np.cos(angle), np.zeros(8), np.sin(angle)], axis=1) * radius_m + np.asarray(center_m)
        across = np.array([0, width_m / 2, 0])
        for i in range(8):
            j = (i + 1) % 8
            self.face([ring[i] - across, ring[j] - across, ring[j] + across, ring[i] + across][::-1], color)
        rim = tuple(min(c * 2.6 + 0.18, 1.0) for c in color)
        hub = (ring - np.asarray(center_m)) * 0.55 + np.asarray(center_m)
        out = across + np.array([0, 0.008, 0])
        self.face(ring - across, color)
        self.face((ring + across)[::-1], color)
        self.face(hub - out, rim)  # type: ignore[arg-type]
        self.face((hub + out)[::-1], rim)  # type: ignore[arg-type]

    def blob(
        self,
        center_m: Sequence[float],
        half_m: Sequence[float],
        color: Color,
        rng: np.random.Generator | None = None,
        *,
        detail: int = 1,
        material: Material = Material.FOLIAGE,
    ) -> None:
        """An ellipsoid of 20 x 4^detail triangles; with `rng` its surface and colors are uneven."""
        points, triangles = _sphere(detail)
        colors = np.tile(np.asarray(color, float), (len(triangles), 1))
        if rng is not None:
            points = points * rng.uniform(0.86, 1.08, (len(points), 1))
            colors = np.minimum(colors * rng.uniform(0.88, 1.1, (len(triangles), 1)), 1.0)
        points = points * np.asarray(half_m) + np.asarray(center_m)
        self.add(points[triangles][:, [0, 1, 2, 2]], colors, material)


@cache
def _sphere(detail: int) -> tuple[Array, NDArray[np.int64]]:
    """Unit sphere: vertices (V, 3) and outward triangles (T, 3) of a subdivided icosahedron."""
    g = (1 + 5**0.5) / 2
    points: list[tuple[float, float, float]] = [
        (-1, g, 0),
        (1, g, 0),
        (-1, -g, 0),
        (1, -g, 0),
        (0, -1, g),
        (0, 1, g),
    ]
    points += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    triangles = [
        *((0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11)),
        *((1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6), (7, 1, 8)),
        *((3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9)),
        *((4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)),
    ]
    vertices = [np.array(p, float) / np.hypot(1, g) for p in points]
    for _ in range(detail):
        middle: dict[tuple[int, int], int] = {}
        finer = []
        for a, b, c in triangles:
            halves = []
            for i, j in ((a, b), (b, c), (c, a)):
                edge = (min(i, j), max(i, j))
                if edge not in middle:
                    point = vertices[i] + vertices[j]
                    middle[edge] = len(vertices)
                    vertices.append(point / np.linalg.norm(point))
                halves.append(middle[edge])
            ab, bc, ca = halves
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        triangles = finer
    return np.array(vertices), np.array(triangles)
