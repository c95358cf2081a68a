"""From first hits to colors: light, shadow, texture, air. Elementwise float32, so any device gives the same.

Colors are linear light until the very end, where the square root stands in for the display curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor
from torch.nn.functional import grid_sample

from sparseoccvla.contracts import FREE_CLASS
from sparseoccvla.world.caster import Hits, Lens, heights_of
from sparseoccvla.world.ground import CELL_M, Channel, Ground, classify, sample_fields
from sparseoccvla.world.markings import Markings
from sparseoccvla.world.shapes import Color, Material
from sparseoccvla.world.stage import Faces
from sparseoccvla.world.style import City, Sky

NOISE_CELLS = 256
SHADOW_CELL_M = 0.2


def linear(color: Color, device: torch.device) -> Tensor:
    """(3, 1) linear light of an sRGB color."""
    return torch.tensor(color, device=device)[:, None] ** 2


def noise_texture(device: torch.device) -> Tensor:
    """(1, 1, 257, 257) seamless noise around 0 with a standard deviation of 1, repeated at the border."""
    rng = np.random.default_rng(20240)
    total = np.zeros((NOISE_CELLS, NOISE_CELLS))
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(NOISE_CELLS),) * 2))
    for low, high, weight in ((0.004, 0.05, 0.8), (0.05, 0.5, 1.0)):
        spectrum = np.fft.fft2(rng.standard_normal((NOISE_CELLS, NOISE_CELLS)))
        layer = np.real(np.fft.ifft2(spectrum * ((frequency >= low) & (frequency < high))))
        total += weight * layer / layer.std()
    total /= total.std()
    padded = np.pad(total, ((0, 1), (0, 1)), mode="wrap")
    return torch.from_numpy(padded.astype(np.float32)).to(device)[None, None]


def noise(texture: Tensor, x_m: Tensor, y_m: Tensor, period_m: float) -> Tensor:
    """Smooth noise (N,) at points of a plane, seamless with a period."""
    u = torch.remainder(x_m * (1 / period_m), 1.0) * 2 - 1
    v = torch.remainder(y_m * (1 / period_m), 1.0) * 2 - 1
    grid = torch.stack([u, v], dim=-1)[None, None]
    return grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=True)[0, 0, 0]


@dataclass(frozen=True)
class View:
    """Where the camera of a picture is."""

    world_from_camera: Tensor  # (4, 4) float32
    lens: Lens


class ShadowMap:
    """What the sun sees: the height toward it of the first thing on each of its rays."""

    def __init__(
        self, sun_direction: np.ndarray, low_m: np.ndarray, high_m: np.ndarray, device: torch.device
    ):
        toward = sun_direction / np.linalg.norm(sun_direction)
        across = np.cross([0, 0, 1.0], toward)
        across /= np.linalg.norm(across)
        axes = np.stack([across, -np.cross(toward, across), toward])
        corners = np.array(
            [
                [x, y, z]
                for x in (low_m[0], high_m[0])
                for y in (low_m[1], high_m[1])
                for z in (low_m[2], high_m[2])
            ]
        )
        seen = corners @ axes.T
        self._low = seen.min(axis=0) - [0, 0, 1]
        size = np.ceil((seen.max(axis=0) - self._low)[:2] / SHADOW_CELL_M).astype(int) + 1
        self._axes = torch.tensor(axes, dtype=torch.float32, device=device)
        self._origin = torch.tensor(self._low, dtype=torch.float32, device=device)
        self._columns, self._rows = int(size[0]), int(size[1])
        self._heights = torch.zeros(self._columns * self._rows, device=device)

    @classmethod
    def over(cls, faces: Faces, ground_count: int, sky: Sky) -> ShadowMap | None:
        """The shadows of faces whose first `ground_count` are ground; None where the sky throws none."""
        if sky.shadows == 0:
            return None
        casters = faces.vertices_m[ground_count:]
        points = casters.reshape(-1, 3).cpu().numpy()
        shadow = cls(sky.sun_direction, points.min(axis=0) - 2, points.max(axis=0) + 2, casters.device)
        shadow.add(casters)
        return shadow

    def _seen(self, points_m: Tensor) -> Tensor:
        seen = points_m @ self._axes.T - self._origin
        return seen * torch.tensor([1 / SHADOW_CELL_M, 1 / SHADOW_CELL_M, 1.0], device=seen.device)

    def add(self, vertices_m: Tensor) -> None:
        """Let faces (F, 4, 3) throw shadows from now on."""
        cell, height = self._cells(vertices_m)
        self._heights.scatter_reduce_(0, cell, height, "amax")

    @contextmanager
    def joined_by(self, vertices_m: Tensor) -> Iterator[None]:
        """Let more faces throw shadows for a while: a copy of the map would take longer than a picture."""
        cell, height = self._cells(vertices_m)
        before = self._heights.index_select(0, cell)
        self._heights.scatter_reduce_(0, cell, height, "amax")
        try:
            yield
        finally:
            self._heights[cell] = before

    def _cells(self, vertices_m: Tensor) -> tuple[Tensor, Tensor]:
        return heights_of(self._seen(vertices_m), self._columns, self._rows)

    def light(self, x: Tensor, y: Tensor, z: Tensor, bias_m: float = 0.05) -> Tensor:
        """(N,) share of the sun that reaches points."""
        u, v, height = self._seen(torch.stack([x, y, z], dim=-1)).unbind(dim=-1)
        u, v = u.clamp(0, self._columns - 1.001), v.clamp(0, self._rows - 1.001)
        column, row = u.floor(), v.floor()
        a, b = u - column, v - row
        index = (row * self._columns + column).to(torch.int64)
        limit = height + bias_m
        lit = [
            (self._heights.index_select(0, index + step) < limit).float()
            for step in (0, 1, self._columns, self._columns + 1)
        ]
        return (1 - b) * ((1 - a) * lit[0] + a * lit[1]) + b * ((1 - a) * lit[2] + a * lit[3])


def _marked_road(ground: Ground) -> np.ndarray:
    """(ny, nx) number of the road whose lines are painted around each sample of the raster.

    None where another road governs a neighbor: between their coordinates there is nothing to interpolate.
    """
    ids = ground.road_ids.astype(np.int64)
    alone = maximum_filter(ids, 3) == minimum_filter(ids, 3)
    return np.where(alone, ids, len(ground.network.roads))


class Shader:
    """Colors the pixels of one scene on one device."""

    def __init__(self, city: City, sky: Sky, ground: Ground, device: torch.device):
        self.sky = sky
        self.device = device
        self.noise = noise_texture(device)
        self.fields = torch.from_numpy(ground.fields).to(device)
        self.road_ids = torch.from_numpy(_marked_road(ground)).to(device)
        self.origin_m = ground.origin_m
        self.markings = Markings.make(ground.network, city, device)
        wet = 1 - 0.45 * self.sky.wet
        self.asphalt = linear(city.asphalt, device) * wet
        self.walk = linear(city.walk, device) * wet
        self.grass = linear(city.grass, device)
        self.paving = linear(city.paving, device) * wet
        self.white = linear((0.90, 0.90, 0.88), device)
        self.yellow = linear((0.90, 0.70, 0.16), device)
        self.sun = torch.tensor(self.sky.sun, device=device)[:, None]
        self.ambient = torch.tensor(self.sky.ambient, device=device)[:, None]
        self.zenith = torch.tensor(self.sky.zenith, device=device)[:, None]
        self.horizon = torch.tensor(self.sky.horizon, device=device)[:, None]
        self.sun_direction = torch.tensor(self.sky.sun_direction, dtype=torch.float32, device=device)

    def shade(self, hits: Hits, view: View, faces: Faces, shadow: ShadowMap | None) -> tuple[Tensor, Tensor]:
        """Colors (H, W, 3) uint8 and ground classes (H, W) uint8 (FREE_CLASS off the ground)."""
        height, width = hits.face.shape
        inverse, face = hits.inverse_depth.reshape(-1), hits.face.reshape(-1)
        pose, lens = view.world_from_camera, view.lens
        u = (torch.arange(width, device=self.device) - lens.cx) / lens.fx
        v = (torch.arange(height, device=self.device) - lens.cy) / lens.fy
        # Directions of the rays in the world, one unit deep.
        rays = [(pose[k, 0] * u + (pose[k, 1] * v + pose[k, 2])[:, None]).reshape(-1) for k in range(3)]
        length = (u * u + (v * v + 1)[:, None]).sqrt().reshape(-1)
        color = self._sky_color(rays, length)
        classes = torch.full_like(face, FREE_CLASS, dtype=torch.uint8)
        hit = (face >= 0).nonzero()[:, 0]
        if len(hit):
            face = face.index_select(0, hit)
            depth = 1 / inverse.index_select(0, hit)
            ray = [r.index_select(0, hit) for r in rays]
            points = [pose[k, 3] + depth * ray[k] for k in range(3)]
            distance = depth * length.index_select(0, hit)
            lit, ground = self._lit(face, points, ray, distance, lens, faces, shadow, pose)
            air = torch.exp(-((distance / self.sky.haze_m) ** 1.3))
            behind = self._sky_color(
                [ray[0], ray[1], ray[2].clamp(min=0)], length.index_select(0, hit), False
            )
            color.index_copy_(1, hit, behind + (lit - behind) * air)
            classes.index_copy_(0, hit, ground)
        shown = (color.clamp(0, 1).sqrt() * 255 + 0.5).to(torch.uint8)
        return shown.T.reshape(height, width, 3), classes.view(height, width)

    def _sky_color(self, ray: list[Tensor], length: Tensor, clouds: bool = True) -> Tensor:
        """(3, N) light from directions."""
        up = (ray[2] / length).clamp(min=0)
        blend = 1 - torch.exp(-up * 4.5)
        color = self.horizon + (self.zenith - self.horizon) * blend
        if clouds and self.sky.clouds > 0:
            flat = 1 / (up + 0.08)
            x, y = ray[0] / length * flat, ray[1] / length * flat
            thick = noise(self.noise, x, y, 9.0) + 0.5 * noise(self.noise, x + 0.3 * y, y, 2.7)
            cover = ((thick * 0.55 + 2.0 * self.sky.clouds - 1.0) * 0.8).clamp(0, 1) * (up * 7).clamp(0, 1)
            bright = 0.5 * (self.sun + self.ambient) + 0.15 * self.horizon
            color = color + (bright.clamp(max=0.92) - color) * (cover * 0.75)
        glow = sum(ray[k] * self.sun_direction[k] for k in range(3)) / length
        return color + self.sun * (
            0.10 * glow.clamp(min=0) ** 8 + 4.0 * ((glow - 0.9993) * 3000).clamp(0, 1)
        ) * (self.sky.shadows)

    def _lit(self, face, points, ray, distance, lens, faces, shadow, pose):  # type: ignore[no-untyped-def]
        material = faces.material.index_select(0, face)
        albedo = torch.stack([c.contiguous().index_select(0, face) for c in faces.albedo.unbind(dim=1)])
        lamp = (faces.material == Material.LAMP).float() * (3.0 * self.sky.lamps)
        sun = (faces.normals @ self.sun_direction).clamp(min=0).index_select(0, face)
        sky = (0.6 + 0.4 * faces.normals[:, 2]).index_select(0, face)
        glow = (faces.glow + lamp).index_select(0, face)
        classes = torch.full_like(face, FREE_CLASS, dtype=torch.uint8)
        pixel_m = distance / lens.fx

        ground = (material == Material.GROUND).nonzero()[:, 0]
        if len(ground):
            x, y = points[0].index_select(0, ground), points[1].index_select(0, ground)
            flat, kind = self._ground(x, y, pixel_m.index_select(0, ground), distance.index_select(0, ground))
            albedo.index_copy_(1, ground, flat)
            classes.index_copy_(0, ground, kind)
        for patterned, pattern in ((Material.FACADE, self._facade), (Material.STRIPES, self._stripes)):
            which = (material == patterned).nonzero()[:, 0]
            if len(which):
                local = [p.index_select(0, which) for p in points]
                color, shine = pattern(
                    local, face.index_select(0, which), faces, albedo.index_select(1, which)
                )
                albedo.index_copy_(1, which, color)
                glow.index_copy_(0, which, shine)
        rough = noise(self.noise, points[0] + points[1] * 0.61, points[2] + points[1] * 0.37, 5.0)
        strength = torch.tensor([0.02, 0.0, 0.05, 0.30, 0, 0, 0.10, 0.02, 0.0, 0, 0], device=self.device)
        fade = (0.10 / pixel_m).clamp(max=1.0)
        albedo = albedo * (1 + rough * strength[material.to(torch.int64)] * fade).clamp(min=0.2)

        light = self.ambient * sky
        if shadow is not None and self.sky.shadows > 0:
            # Seen from a little off the surface, or coarse shadows would fall on the walls that throw them.
            normal = faces.normals.index_select(0, face).unbind(dim=1)
            open_sky = shadow.light(*(p + 0.3 * n for p, n in zip(points, normal, strict=True)))
            light = light + self.sun * (sun * (1 - self.sky.shadows * (1 - open_sky)))
        else:
            light = light + self.sun * sun
        if self.sky.lamps > 0:
            light = light + self._headlights(points, distance, pose)
        color = albedo * light + albedo * glow
        glass = (material == Material.GLASS).nonzero()[:, 0]
        if len(glass):
            normal = faces.normals.index_select(0, face.index_select(0, glass)).unbind(dim=1)
            view = [ray[k].index_select(0, glass) for k in range(3)]
            along = sum(n * r for n, r in zip(normal, view, strict=True))
            mirrored = [r - 2 * along * n for n, r in zip(normal, view, strict=True)]
            length = sum(m * m for m in mirrored).sqrt()
            reflected = self._sky_color([mirrored[0], mirrored[1], mirrored[2].clamp(min=0)], length, False)
            grazing = 0.18 + 0.5 * (1 + along / length).clamp(0, 1) ** 3
            facing = (mirrored[2] / length * 4 + 0.6).clamp(0.15, 1)
            color.index_add_(1, glass, reflected * grazing * facing)
        return color, classes

    def _ground(self, x: Tensor, y: Tensor, pixel_m: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        fields = sample_fields(self.fields, self.origin_m, torch.stack([x, y], dim=-1))
        classes = classify(fields)
        fine = noise(self.noise, x, y, 7.0) * (0.05 / pixel_m).clamp(max=1.0)
        coarse = noise(self.noise, x, y, 83.0)
        soft = (pixel_m * 2).clamp(min=0.03)

        def inside(signed: Tensor) -> Tensor:
            return (signed / soft + 0.5).clamp(0, 1)

        road, outer, verge = fields[Channel.ROAD], fields[Channel.OUTER], fields[Channel.VERGE]
        color = self.grass * (1 + 0.16 * fine + 0.14 * coarse).clamp(min=0.3)
        # Sidewalk slabs and a lighter curb.
        slab = (torch.remainder(fields[Channel.STATION], 1.6) - 0.8).abs() / 0.8
        joint = ((slab - 0.97) * 30).clamp(0, 1) * (0.04 / pixel_m).clamp(max=1.0)
        walk = self.walk * (1 + 0.06 * fine + 0.05 * coarse - 0.25 * joint)
        color = color + (walk - color) * (inside(outer) * (1 - inside(verge)))
        flat = inside(fields[Channel.FLAT])
        tiles = torch.sign(torch.sin(x * 5.2) * torch.sin(y * 5.2)) * (0.12 / pixel_m).clamp(max=1.0)
        color = color + (self.asphalt * (1 + 0.10 * fine + 0.10 * coarse).clamp(min=0.3) - color) * inside(
            road
        )
        color = color + (self.paving * (1 + 0.05 * fine + 0.06 * tiles) - color) * flat
        curb = inside(road + 0.16) * (1 - inside(road)) * (1 - flat)
        color = color + (self.walk * 1.12 - color) * curb
        corner = (
            (torch.stack([x, y], dim=-1) - torch.tensor(self.origin_m, device=x.device)) / CELL_M
        ).round()
        rows, columns = self.road_ids.shape
        index = corner[:, 1].clamp(0, rows - 1) * columns + corner[:, 0].clamp(0, columns - 1)
        number = self.road_ids.reshape(-1).index_select(0, index.to(torch.int64))
        white, yellow = self.markings.coverage(fields, number, pixel_m + distance * pixel_m * 0.05)
        worn = (0.93 - 0.08 * fine - 0.06 * coarse).clamp(0.5, 1)
        paint = (1 - flat) * worn
        color = color + (self.yellow - color) * (yellow * paint)
        color = color + (self.white - color) * (white * paint)
        return color, classes

    def _facade(self, points, face, faces, wall):  # type: ignore[no-untyped-def]
        """Windows on a grid, a darker ground floor, and some lights at night."""
        normal = faces.normals.index_select(0, face).unbind(dim=1)
        anchor = faces.vertices_m[:, 0].index_select(0, face).unbind(dim=1)
        number = faces.instance.index_select(0, face).to(torch.float32)
        along = (points[0] - anchor[0]) * -normal[1] + (points[1] - anchor[1]) * normal[0]
        up = points[2] - anchor[2] - 3.0  # foundations reach 3 m down
        pick = torch.remainder(number * 0.618, 1.0)  # differs between buildings
        step_x, step_y = 2.2 + 1.4 * pick, 2.9 + 0.5 * pick
        cell_x, cell_y = torch.floor(along / step_x), torch.floor(up / step_y)
        in_x = (along / step_x - cell_x - 0.5).abs()
        in_y = (up / step_y - cell_y - 0.52).abs()
        wide, tall = 0.24 + 0.14 * pick, 0.27
        window = ((in_x < wide) & (in_y < tall) & (up > 0.2)).float()
        frame = ((in_x < wide + 0.04) & (in_y < tall + 0.03) & (up > 0.1)).float()
        pane = torch.remainder(torch.sin(cell_x * 12.99 + cell_y * 78.23 + number) * 437.5, 1.0)
        color = wall + (wall * 1.35 + 0.05 - wall) * (frame - window)
        dark = torch.stack([0.02 + 0.05 * pane, 0.03 + 0.07 * pane, 0.05 + 0.09 * pane])
        color = color + (dark - color) * window
        base = ((up < 0.5) & (up > -9)).float()
        color = color * (1 - 0.25 * base)
        warm = torch.tensor([0.9, 0.62, 0.28], device=wall.device)[:, None]
        on = window * (pane > 0.6).float() * self.sky.lamps
        color = color + (warm - color) * on
        return color, on * 0.8

    def _stripes(self, points, face, faces, paint):  # type: ignore[no-untyped-def]
        """Slanted white stripes."""
        band = torch.sin((points[0] + points[1] + points[2] * 1.4) * 9.0) > 0.1
        white = torch.full_like(paint, 0.8)
        return torch.where(band, white, paint), torch.zeros_like(points[0])

    def _headlights(self, points, distance, pose):  # type: ignore[no-untyped-def]
        """Light of the ego's own lamps, as if from the camera."""
        return 0.0
