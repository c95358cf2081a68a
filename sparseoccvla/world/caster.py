"""Which face does each pixel's ray hit first, and how far away? In torch, on any device.

Every ray is tested against exactly the faces it can hit: a face's edges and the camera span planes, and
along an image row each plane is a bound on the column, so the columns whose rays pass through a convex face
are one interval. No face needs clipping, because a ray behind the camera never satisfies all edges. Along
the interval the inverse depth is linear (it is the ray-plane intersection written out), and the nearest face
wins through an integer maximum, which gives the same picture in any order of work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = -1


@dataclass(frozen=True)
class Lens:
    """Pixel coordinates of points: u = fx x / z + cx, with pixel (0, 0) centered at (0, 0)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width_px: int
    height_px: int
    first_row: int = 0  # rows before this one are left out
    end_row: int | None = None


@dataclass(frozen=True)
class Hits:
    """The first face along each ray."""

    face: Tensor  # (H, W) int64, NOTHING where the ray meets none
    inverse_depth: Tensor  # (H, W) float32 1/m, 0 where the ray meets none
    planes: Tensor  # (F, 3) inverse depth = planes[face] . (u, v, 1)


def cast(vertices_m: Tensor, lens: Lens) -> Hits:
    """Cast one ray through every pixel.

    Args:
        vertices_m: (F, 4, 3) float32 corners of flat convex faces in the camera frame (z forward, x right,
            y down), counter-clockwise as seen from their visible side; faces seen from behind are not there.
        lens: the camera; rows outside `first_row` to `end_row` stay empty.
    """
    pixels, planes, visible = _turned_to(vertices_m, lens)
    pixel, inverse, face = _crossed(pixels, planes, visible, lens)
    # Positive floats are ordered like their bits, so the nearest face is the largest integer.
    key = (inverse.view(torch.int32).to(torch.int64) << 32) + face
    shape = (lens.height_px, lens.width_px)
    best = torch.full((shape[0] * shape[1],), NOTHING, dtype=torch.int64, device=key.device)
    best.scatter_reduce_(0, pixel, key, "amax")
    hit = best >= 0
    nearest = torch.where(hit, best >> 32, 0).to(torch.int32).view(torch.float32)
    return Hits(torch.where(hit, best & 0xFFFFFFFF, NOTHING).view(shape), nearest.view(shape), planes)


def outlines(vertices_m: Tensor, owner: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """How many pixels each owner of faces would cover if nothing else were there.

    Args:
        vertices_m: (F, 4, 3) faces as `cast` takes them.
        owner: (F,) int64 number of whose each face is.
        lens: the camera.

    Returns:
        Numbers of the owners in the picture, and pixels of each (O,).
    """
    pixels, planes, visible = _turned_to(vertices_m, lens)
    pixel, _, face = _crossed(pixels, planes, visible, lens)
    size = lens.height_px * lens.width_px
    covered = (owner.index_select(0, face) * size + pixel).unique()
    return torch.div(covered, size, rounding_mode="floor").unique_consecutive(return_counts=True)


def heights_of(faces: Tensor, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Where parallel rays meet faces from above: cell of a height map and height of every meeting (N,).

    Args:
        faces: (F, 4, 3) corners as column, row and height, clockwise on the map as seen from above (rows grow
            downward); faces that look down are not there.
        columns: of the map.
        rows: of the map.
    """
    lens = Lens(1, 1, 0, 0, columns, rows)
    flat = torch.stack([faces[..., 0], faces[..., 1], torch.ones_like(faces[..., 2])], dim=-1)
    a = faces[:, 0]
    normal = cross(faces[:, 1] - a, faces[:, 2] - a)
    slope = -normal[:, :2] / normal[:, 2:].clamp(max=-1e-6)
    planes = torch.cat([slope, (a[:, 2] - (slope * a[:, :2]).sum(dim=-1))[:, None]], dim=1)
    pixel, height, _ = _crossed(flat, planes, (normal[:, 2] < -1e-6) & _may_be_seen(flat, lens), lens)
    return pixel, height


def plane_in_pixels(normal: Tensor, lens: Lens) -> Tensor:
    """Rewrite (F, 3) linear forms of a ray (x, y, 1) as forms of its pixel (u, v, 1)."""
    nx, ny = normal[:, 0] / lens.fx, normal[:, 1] / lens.fy
    return torch.stack([nx, ny, normal[:, 2] - nx * lens.cx - ny * lens.cy], dim=-1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product without fused multiply-add: of equal vectors it is exactly zero, and swapping changes
    nothing but the sign, so that neighboring faces share their edge to the last bit.
    """
    (ax, ay, az), (bx, by, bz) = a.unbind(dim=-1), b.unbind(dim=-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], dim=-1)


def _turned_to(vertices_m: Tensor, lens: Lens) -> tuple[Tensor, Tensor, Tensor]:
    """Corners as u z, v z, z (F, 4, 3), planes (F, 3), and which faces show their visible side (F,)."""
    x, y, z = vertices_m.unbind(dim=-1)
    pixels = torch.stack([lens.fx * x + lens.cx * z, lens.fy * y + lens.cy * z, z], dim=-1)
    normal = cross(vertices_m[:, 1] - vertices_m[:, 0], vertices_m[:, 2] - vertices_m[:, 0])
    toward = -(normal * vertices_m[:, 0]).sum(dim=-1)  # positive: seen from its visible side
    planes = -plane_in_pixels(normal, lens) / toward[:, None]
    scale = normal.abs().sum(dim=-1) * vertices_m[:, 0].abs().sum(dim=-1)
    return pixels, planes, (toward > 1e-6 * scale) & _may_be_seen(pixels, lens)


def _may_be_seen(pixels: Tensor, lens: Lens) -> Tensor:
    """(F,) False for faces wholly beyond one side of the picture or behind the camera."""
    u, v, w = pixels.unbind(dim=-1)
    first, end = lens.first_row, lens.end_row or lens.height_px
    sides = (w <= 0, u < 0, u > (lens.width_px - 1) * w, v < first * w, v > (end - 1) * w)
    return ~torch.stack([side.all(dim=1) for side in sides]).any(dim=0)


def _crossed(pixels: Tensor, planes: Tensor, visible: Tensor, lens: Lens) -> tuple[Tensor, Tensor, Tensor]:
    """Every (pixel, face) that meet: pixel numbers, values of the faces' planes there, face numbers (N,)."""
    device = pixels.device
    face = visible.nonzero()[:, 0]
    corners = pixels.index_select(0, face)
    row, which = _rows(corners, lens)
    # Edges as (F, 4, 3) linear forms of (u, v, 1) that are not negative inside.
    edges = cross(corners.roll(-1, dims=1), corners)
    low = torch.zeros(len(row), device=device)
    high = torch.full((len(row),), float(lens.width_px - 1), device=device)
    for edge in range(4):
        a, b, c = (edges[:, edge, k].contiguous().index_select(0, which) for k in range(3))
        rest = b * row + c
        bound = -rest / a
        low = torch.where(a > 0, torch.maximum(low, bound), low)
        high = torch.where(a < 0, torch.minimum(high, bound), high)
        high = torch.where((a == 0) & (rest < 0), -1.0, high)
    first, last = low.ceil().to(torch.int64), high.floor().to(torch.int64)
    span = (last >= first).nonzero()[:, 0]
    first, row, which = first[span], row[span], which[span]
    of, step = unroll(last[span] - first + 1)
    number = face[which]
    along, down, rest = planes.index_select(0, number).T.contiguous()
    value = (along * first + down * row + rest).index_select(0, of) + along.index_select(0, of) * step
    pixel = (row.to(torch.int64) * lens.width_px + first).index_select(0, of) + step
    return pixel, value.clamp(min=0), number.index_select(0, of)


def unroll(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Runs (R,) of at least one item, laid end to end: the run of each item and its place in the run (N,)."""
    start = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    run = torch.zeros(total, dtype=torch.int64, device=lengths.device)
    if total:
        run[start[1:]] = 1
        run = run.cumsum(0)
    return run, torch.arange(total, device=lengths.device) - start.index_select(0, run)


def _rows(corners: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """All rows a face can touch: (R,) float rows and the number of the face of each."""
    w = corners[..., 2]
    v = corners[..., 1] / w
    first, last = float(lens.first_row), float((lens.end_row or lens.height_px) - 1)
    ahead = (w > 1e-3).all(dim=1)
    low = torch.where(ahead, v.amin(dim=1), first).clamp(first, last + 1).ceil()
    high = torch.where(ahead, v.amax(dim=1), last).clamp(first - 1, last).floor()
    count = (high - low + 1).clamp(min=0).to(torch.int64)
    which = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    start = count.cumsum(0) - count
    row = torch.arange(len(which), device=count.device) - start.index_select(0, which)
    return row + low.index_select(0, which), which
