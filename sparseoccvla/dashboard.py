"""One picture of what the stack sees, thinks and wants: cameras, occupancy from above, plan, words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sparseoccvla.contracts import (
    CLASS_NAMES,
    NUM_MODES,
    PlannedTrajectory,
    PlanProposal,
    Source,
    SparseOccupancy,
)
from sparseoccvla.palette import CLASS_COLORS_RGB

WIDTH, HEIGHT = 1600, 900
_MARGIN = 16
_TILE = (308, 173)  # one camera
_VIEW_PX = 600  # the map is square, 1 px is 0.13 m of an 80 m grid
_BACKGROUND = (18, 21, 27)
_PANEL = (28, 32, 40)
_TEXT = (228, 231, 236)
_DIM = (146, 153, 166)
_ACCENT = (94, 214, 160)
_ALARM = (255, 122, 105)
# Rows as one looks around: left, ahead, right; then behind, mirrored so that left stays left.
_TILES = (
    "cam_front_left",
    "cam_front",
    "cam_front_right",
    "cam_back_left",
    "cam_back",
    "cam_back_right",
)


@dataclass(frozen=True)
class Dashboard:
    """What is drawn; anything may be missing."""

    cameras: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # name -> RGB (H, W, 3)
    occupancy: SparseOccupancy | None = None
    proposal: PlanProposal | None = None
    trajectory: PlannedTrajectory | None = None
    text: str = ""
    notes: Sequence[str] = ()  # model, backend, what is untrained
    warning: str = ""  # shown in a banner


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of every picture that people look at."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def occupancy_from_above(occupancy: SparseOccupancy) -> NDArray[np.uint8]:
    """(X, Y, 3) colors, x forward up and y left to the left: the highest voxel of each column.

    Higher voxels are lighter; columns nobody saw are nearly black, free ones dark.
    """
    shape = occupancy.grid.shape
    seen = occupancy.observed.any(axis=2)
    picture = np.where(seen[..., None], np.uint8(46), np.uint8(24)).repeat(3, axis=2)
    order = np.argsort(occupancy.indices[:, 2], kind="stable")
    x, y, z = occupancy.indices[order].T
    light = 0.72 + 0.5 * z / shape[2]
    color = np.clip(CLASS_COLORS_RGB[occupancy.labels[order]] * light[:, None], 0, 255)
    picture[x, y] = color.astype(np.uint8)  # later, higher voxels win
    return picture[::-1, ::-1]


def draw(board: Dashboard) -> NDArray[np.uint8]:
    """The picture, RGB (HEIGHT, WIDTH, 3)."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    top = _MARGIN
    if board.warning:
        pen.rounded_rectangle((_MARGIN, top, WIDTH - _MARGIN, top + 34), 6, fill=(92, 38, 34))
        pen.text((_MARGIN + 14, top + 7), board.warning, _TEXT, font(16, bold=True))
        top += 46
    _draw_cameras(canvas, pen, board, top)
    _draw_map(canvas, pen, board, WIDTH - _MARGIN - _VIEW_PX, top)
    _draw_words(pen, board, top + 2 * (_TILE[1] + 8) + 10)
    return np.asarray(canvas)


def _draw_cameras(canvas: Image.Image, pen: ImageDraw.ImageDraw, board: Dashboard, top: int) -> None:
    for i, name in enumerate(_TILES):
        x = _MARGIN + i % 3 * (_TILE[0] + 8)
        y = top + i // 3 * (_TILE[1] + 8)
        if name in board.cameras:
            picture = Image.fromarray(np.ascontiguousarray(board.cameras[name]))
            canvas.paste(picture.resize(_TILE, Image.Resampling.BILINEAR), (x, y))
        else:
            pen.rectangle((x, y, x + _TILE[0], y + _TILE[1]), fill=_PANEL)
            pen.text((x + _TILE[0] / 2, y + _TILE[1] / 2), "no picture", _DIM, font(15), anchor="mm")
        label = name.removeprefix("cam_").replace("_", " ")
        pen.text(
            (x + 9, y + 7),
            label,
            (255, 255, 255),
            font(14, bold=True),
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )


def _draw_map(canvas: Image.Image, pen: ImageDraw.ImageDraw, board: Dashboard, left: int, top: int) -> None:
    # On a picture of its own, so that a path that leaves the map is cut off there.
    if board.occupancy is not None:
        half_m = board.occupancy.grid.max_m[0]
        view = Image.fromarray(np.ascontiguousarray(occupancy_from_above(board.occupancy)))
        view = view.resize((_VIEW_PX, _VIEW_PX), Image.Resampling.NEAREST)
    else:
        half_m = 40.0
        view = Image.new("RGB", (_VIEW_PX, _VIEW_PX), _PANEL)
    _draw_paths(ImageDraw.Draw(view), board, half_m)
    canvas.paste(view, (left, top))
    _draw_legend(pen, board, left, top + _VIEW_PX + 12)


def _draw_paths(pen: ImageDraw.ImageDraw, board: Dashboard, half_m: float) -> None:
    def pixel(points_m: NDArray[np.floating]) -> list[tuple[float, float]]:
        scale = _VIEW_PX / (2 * half_m)
        return [((half_m - y) * scale, (half_m - x) * scale) for x, y in points_m[:, :2]]

    origin = np.zeros((1, 2))
    if board.proposal is not None:
        row = board.proposal.command.anchor_row
        for i in np.argsort(board.proposal.scores):
            mine = i // NUM_MODES == row
            score = float(np.clip(board.proposal.scores[i], 0, 1))
            color = (90 + int(165 * score), 200, 255 - int(120 * score)) if mine else (105, 110, 120)
            path = np.concatenate([origin, board.proposal.candidates[i][:, :2]])
            pen.line(pixel(path), fill=color, width=2 if mine else 1, joint="curve")
    if board.trajectory is not None:
        color = _ACCENT if board.trajectory.source is Source.MODEL else _ALARM
        path = np.concatenate([origin, board.trajectory.poses[:, :2]])
        pen.line(pixel(path), fill=color, width=5, joint="curve")
        for x, y in pixel(path[1:]):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255), outline=color, width=2)
    # base_link is the rear axle: the body reaches 3.8 m ahead of it and 1 m behind.
    body = np.array([[3.8, 0.95], [3.8, -0.95], [-1.0, -0.95], [-1.0, 0.95]])
    pen.polygon(pixel(body), fill=(245, 245, 245), outline=(0, 0, 0))


def _draw_legend(pen: ImageDraw.ImageDraw, board: Dashboard, left: int, top: int) -> None:
    counts = (
        np.bincount(board.occupancy.labels, minlength=len(CLASS_NAMES))
        if board.occupancy is not None
        else None
    )
    for i, name in enumerate(CLASS_NAMES):
        x, y = left + i % 4 * 150, top + i // 4 * 22
        present = counts is None or counts[i] > 0
        color = tuple(int(c) for c in CLASS_COLORS_RGB[i]) if present else (60, 64, 72)
        pen.rectangle((x, y + 3, x + 12, y + 15), fill=color)
        pen.text((x + 18, y), name.replace("_", " "), _TEXT if present else (88, 93, 103), font(12))


def _draw_words(pen: ImageDraw.ImageDraw, board: Dashboard, top: int) -> None:
    left, right = _MARGIN, _MARGIN + 3 * _TILE[0] + 16
    pen.rounded_rectangle((left, top, right, HEIGHT - _MARGIN), 8, fill=_PANEL)
    x, y = left + 20, top + 16
    for title, lines, color in _words(board):
        pen.text((x, y), title, _DIM, font(13, bold=True))
        y += 20
        for line in lines:
            if y > HEIGHT - _MARGIN - 30:
                return
            pen.text((x, y), line, color, font(17))
            y += 25
        y += 12


def _words(board: Dashboard) -> list[tuple[str, list[str], tuple[int, int, int]]]:
    sections = []
    if board.trajectory is not None:
        plan = board.trajectory
        good = plan.source is Source.MODEL
        side = "left" if plan.poses[-1, 1] >= 0 else "right"
        line = (
            f"{plan.command.name.lower()}, {plan.speeds_mps[0]:.1f} to {plan.speeds_mps[-1]:.1f} m/s, "
            f"{plan.poses[-1, 0]:.1f} m ahead and {abs(plan.poses[-1, 1]):.1f} m to the {side} in 3 s"
        )
        lines = [line if good else f"FALLBACK: {plan.reason}"]
        sections.append(("PLAN", lines, _ACCENT if good else _ALARM))
    if board.text:
        sections.append(("REASONING", textwrap.wrap(board.text, 88)[:5], _TEXT))
    if board.notes:
        sections.append(("STACK", [textwrap.shorten(note, 104) for note in board.notes], _DIM))
    return sections
