"""A contact sheet of one moment of a drive: what the cameras see, what it is, and what happens around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from sparseoccvla.contracts import CLASS_NAMES, FREE_CLASS, NS_PER_S, NUM_STEPS, STEP_S, Command
from sparseoccvla.dashboard import font
from sparseoccvla.palette import CLASS_COLORS_RGB
from sparseoccvla.world.boxes import corners_m
from sparseoccvla.world.drive import Drive, Event
from sparseoccvla.world.effects import Cameras
from sparseoccvla.world.ego import EGO_CENTER_M, EGO_LENGTH_M, EGO_WIDTH_M
from sparseoccvla.world.render import CameraImage
from sparseoccvla.world.scene import Scene

WIDTH, HEIGHT = 1920, 1000
# Rows as one looks around: left, ahead, right; then behind, mirrored so that left stays left.
_TILES = ("cam_front_left", "cam_front", "cam_front_right", "cam_back_left", "cam_back", "cam_back_right")
_BACKGROUND, _PANEL = (18, 21, 27), (28, 32, 40)
_TEXT, _DIM, _ACCENT, _ALARM = (228, 231, 236), (146, 153, 166), (94, 214, 160), (255, 122, 105)
_SKY = (38, 44, 58)
_MARGIN, _GAP = 20, 8
_TOP = 62
_PICTURE_PX = (400, 225)
_SMALL_PX = (196, 110)
_MAP_PX = 640
_HALF_M = 40.0
_NEAR_M, _FAR_M = 3.0, 80.0  # ends of the depth colors

Color = tuple[int, int, int]
Pen = ImageDraw.ImageDraw
Across = Callable[[int], float]  # pixels of a stamp


def telling_stamp(drive: Drive, from_s: float = 1.0) -> int:
    """A moment worth looking at: a hazard is in sight and the expert about to act, else the middle."""
    for event in drive.events:
        if event.visible_ns and event.react_ns:
            return max(event.react_ns - NS_PER_S // 4, int(drive.stamps_ns[0]) + round(from_s * NS_PER_S))
    return int(drive.stamps_ns[len(drive.stamps_ns) // 2])


def contact_sheet(scene: Scene, drive: Drive, cameras: Cameras, now_ns: int) -> NDArray[np.uint8]:
    """RGB (HEIGHT, WIDTH, 3): six pictures, their classes and depths, the map, and the drive over time.

    Args:
        scene: what there is.
        drive: what happens in it; the way ahead is drawn as far as it lasts.
        cameras: of the scene.
        now_ns: nominal time of the camera set.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    _draw_title(pen, scene, drive, now_ns)
    images = {
        camera.name: cameras.picture(drive, camera.name, now_ns + camera.offset_ns, _PICTURE_PX)
        for camera in cameras.rig.cameras
    }
    right = _MARGIN + 3 * (_PICTURE_PX[0] + _GAP) + 8
    below = _TOP + 2 * (_PICTURE_PX[1] + _GAP) + 6
    _draw_tiles(canvas, images, "rgb", (_MARGIN, _TOP), _PICTURE_PX)
    half = 3 * (_SMALL_PX[0] + _GAP)
    _draw_tiles(canvas, images, "class", (_MARGIN, below + 22), _SMALL_PX)
    _draw_tiles(canvas, images, "depth", (_MARGIN + half, below + 22), _SMALL_PX)
    pen.text((_MARGIN, below), "CLASSES", _DIM, font(13, bold=True))
    pen.text((_MARGIN + half, below), f"DEPTH, {_NEAR_M:g} to {_FAR_M:g} m", _DIM, font(13, bold=True))
    timeline = below + 22 + 2 * (_SMALL_PX[1] + _GAP) + 8
    _draw_timeline(pen, drive, now_ns, (_MARGIN, timeline, right - 16, HEIGHT - _MARGIN))
    _draw_map(canvas, scene, drive, now_ns, (right, _TOP))
    _draw_legend(pen, right, _TOP + _MAP_PX + 14)
    return np.asarray(canvas)


def _draw_title(pen: Pen, scene: Scene, drive: Drive, now_ns: int) -> None:
    ego = drive.ego_at(now_ns)
    seconds = (now_ns - int(drive.stamps_ns[0])) / NS_PER_S
    title = f"{scene.city.name}, seed {scene.seed}"
    pen.text((_MARGIN, 18), title, _TEXT, font(24, bold=True))
    rest = (
        f"{scene.sky.weather} {scene.sky.hour}    at {seconds:.2f} s    {ego.speed_mps:.1f} m/s    "
        f"{ego.acceleration_mps2:+.1f} m/s²    command {drive.command_at(now_ns).name.lower()}"
    )
    pen.text((_MARGIN + pen.textlength(title, font(24, bold=True)) + 24, 24), rest, _DIM, font(17))


def _draw_tiles(
    canvas: Image.Image,
    images: dict[str, CameraImage | None],
    what: str,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    pen = ImageDraw.Draw(canvas)
    for i, name in enumerate(_TILES):
        x = corner[0] + i % 3 * (size[0] + _GAP)
        y = corner[1] + i // 3 * (size[1] + _GAP)
        image = images[name]
        if image is None:
            pen.rectangle((x, y, x + size[0], y + size[1]), fill=_PANEL)
            pen.text((x + size[0] / 2, y + size[1] / 2), "lost", _DIM, font(15), anchor="mm")
            continue
        tile = Image.fromarray(np.ascontiguousarray(_colors(image, what)))
        canvas.paste(tile.resize(size, Image.Resampling.LANCZOS), (x, y))
        if what == "rgb":
            label = name.removeprefix("cam_").replace("_", " ")
            pen.text((x + 9, y + 7), label, (255, 255, 255), font(14, True), stroke_width=2, stroke_fill=0)


def _colors(image: CameraImage, what: str) -> NDArray[np.uint8]:
    sky = image.class_ids == FREE_CLASS
    match what:
        case "class":
            colors = CLASS_COLORS_RGB[np.where(sky, 0, image.class_ids)]
        case "depth":
            near, far = np.log(_NEAR_M), np.log(_FAR_M)
            share = (far - np.log(np.clip(image.depth_m, _NEAR_M, _FAR_M))) / (far - near)
            level = np.rint(30 + 210 * share).astype(np.uint8)
            colors = np.asarray(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1], np.uint8)
        case _:
            return image.rgb
    return np.where(sky[..., None], np.array(_SKY, np.uint8), colors)


class _Map:
    """Pixels of points around the ego, which looks up."""

    def __init__(self, pose: NDArray[np.float64]) -> None:
        self._origin, self._yaw = pose[:2], float(pose[3])
        self._scale = _MAP_PX / (2 * _HALF_M)

    def pixels(self, points_m: ArrayLike) -> list[tuple[float, float]]:
        """Of points (N, 2) in the world."""
        x, y = (np.asarray(points_m, float).reshape(-1, 2) - self._origin).T
        c, s = np.cos(self._yaw), np.sin(self._yaw)
        ahead, left = c * x + s * y, -s * x + c * y
        return [
            ((_HALF_M - b) * self._scale, (_HALF_M - a) * self._scale)
            for a, b in zip(ahead, left, strict=True)
        ]

    def points_m(self) -> NDArray[np.float64]:
        """(_MAP_PX, _MAP_PX, 2) the world's point of every pixel."""
        side = _HALF_M - (np.arange(_MAP_PX) + 0.5) / self._scale
        left, ahead = np.meshgrid(side, side)
        c, s = np.cos(self._yaw), np.sin(self._yaw)
        return self._origin + np.stack([c * ahead - s * left, s * ahead + c * left], axis=-1)


def _draw_map(canvas: Image.Image, scene: Scene, drive: Drive, now_ns: int, corner: tuple[int, int]) -> None:
    index = int(np.clip(np.searchsorted(drive.stamps_ns, now_ns), 0, len(drive.stamps_ns) - 1))
    ego = drive.ego[index]
    place = _Map(ego)
    ground = CLASS_COLORS_RGB[scene.ground.class_at(place.points_m())]
    view = Image.fromarray((ground * 0.62).astype(np.uint8))
    pen = ImageDraw.Draw(view)
    route = scene.ego_path.points_m[:, :2]
    pen.line(place.pixels(route), fill=(236, 238, 242), width=2, joint="curve")
    hazards = {thing.name: hazard.name for hazard in scene.hazards for thing in hazard.things[:1]}
    for name, label, pose, size, solid in _outlines(drive, now_ns):
        if name.startswith("tree"):
            [(x, y)], r = place.pixels(pose[:2]), 11
            pen.ellipse(
                (x - r, y - r, x + r, y + r), fill=_shade(_of_class(label), 0.75), outline=(22, 60, 33)
            )
            continue
        outline = place.pixels(corners_m(pose, np.array(size)))
        color = _of_class(label)
        pen.polygon(outline, fill=color if solid else _shade(color, 0.75), outline=_shade(color, 0.45))
        if solid:
            front = pose[:2] + size[0] / 2 * np.array([np.cos(pose[2]), np.sin(pose[2])])
            pen.line(place.pixels([pose[:2], front]), fill=_shade(color, 0.4), width=2)
    for name, _, pose, _, _ in _outlines(drive, now_ns):
        if name in hazards:
            [(x, y)] = place.pixels(pose[:2])
            pen.ellipse((x - 17, y - 17, x + 17, y + 17), outline=_ALARM, width=3)
            pen.text(
                (x + 22, y - 9),
                hazards[name],
                _ALARM,
                font(14, True),
                stroke_width=3,
                stroke_fill=(20, 20, 24),
            )
    ahead = drive.ego[index : index + round(NUM_STEPS * STEP_S / 0.05) + 1, :2]
    pen.line(place.pixels(ahead), fill=_ACCENT, width=5, joint="curve")
    for x, y in place.pixels(ahead[10::10]):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255), outline=_ACCENT, width=2)
    forward = np.array([np.cos(ego[3]), np.sin(ego[3])])
    center = np.append(ego[:2] + EGO_CENTER_M * forward, ego[3])
    body = place.pixels(corners_m(center, np.array([EGO_LENGTH_M, EGO_WIDTH_M])))
    pen.polygon(body, fill=(245, 245, 245), outline=(0, 0, 0))
    canvas.paste(view, corner)


def _outlines(
    drive: Drive, now_ns: int
) -> Iterator[tuple[str, int, NDArray[np.float64], tuple[float, float], bool]]:
    """Name, class, pose (3,), length and width, and whether it is annotated, of everything on the map."""
    poses = drive.agent_poses_at(now_ns)
    standing = [(thing, thing.pose) for thing in drive.standing]
    scenery = [(thing, pose) for thing, pose in standing if not thing.category]
    annotated = [(thing, pose) for thing, pose in standing if thing.category]
    for thing, pose in (*scenery, *annotated, *zip(drive.agents, poses, strict=True)):
        yield thing.name, thing.label, pose[[0, 1, 3]], thing.size_m[:2], bool(thing.category)


def _draw_legend(pen: Pen, left: int, top: int) -> None:
    for i, name in enumerate(CLASS_NAMES):
        x, y = left + i % 4 * 160, top + i // 4 * 22
        pen.rectangle((x, y + 3, x + 12, y + 15), fill=_of_class(i))
        pen.text((x + 18, y), name.replace("_", " "), _TEXT, font(12))
    y = top + 5 * 22 + 10
    for x, color, words in (
        (left, (236, 238, 242), "route"),
        (left + 160, _ACCENT, "expert, 3 s"),
        (left + 320, _ALARM, "hazard"),
    ):
        pen.line((x, y + 9, x + 14, y + 9), fill=color, width=4)
        pen.text((x + 20, y), words, _TEXT, font(12))


def _draw_timeline(pen: Pen, drive: Drive, now_ns: int, area: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = area
    pen.rounded_rectangle(area, 8, fill=_PANEL)
    start_ns, end_ns = int(drive.stamps_ns[0]), int(drive.stamps_ns[-1])
    first, last = left + 150, right - 20

    def across(stamp_ns: int) -> float:
        return first + (last - first) * (stamp_ns - start_ns) / (end_ns - start_ns)

    for second in range(0, int(drive.duration_s) + 1, 2):
        x = across(start_ns + second * NS_PER_S)
        pen.line((x, top + 12, x, bottom - 24), fill=(44, 49, 60))
        pen.text((x, bottom - 20), f"{second} s", _DIM, font(12), anchor="ma")
    row = top + 14
    pen.text((left + 14, row), "speed", _DIM, font(13))
    fastest = max(float(drive.speed_mps.max()), 1.0)
    curve = [
        (across(int(t)), row + 46 - 44 * v / fastest)
        for t, v in zip(drive.stamps_ns, drive.speed_mps, strict=True)
    ]
    pen.line(curve, fill=_ACCENT, width=2)
    pen.text((left + 14, row + 17), f"to {fastest:.1f} m/s", _DIM, font(12))
    row += 56
    pen.text((left + 14, row), "command", _DIM, font(13))
    _draw_commands(pen, drive, across, row)
    for event in drive.events[: (bottom - row - 50) // 26]:
        row += 26
        pen.text((left + 14, row), event.name, _TEXT, font(13))
        _draw_event(pen, event, across, row, end_ns)
    x = across(now_ns)
    pen.line((x, top + 8, x, bottom - 24), fill=(255, 255, 255), width=2)


def _draw_commands(pen: Pen, drive: Drive, across: Across, row: int) -> None:
    colors = {Command.LEFT: (96, 165, 250), Command.RIGHT: (250, 176, 96), Command.STRAIGHT: (92, 98, 110)}
    changes = [0, *(np.nonzero(np.diff(drive.commands))[0] + 1).tolist(), len(drive.commands) - 1]
    for begin, end in pairwise(changes):
        command = Command(int(drive.commands[begin]))
        x0, x1 = across(int(drive.stamps_ns[begin])), across(int(drive.stamps_ns[end]))
        pen.rectangle((x0, row + 2, x1 - 1, row + 15), fill=colors.get(command, _DIM))
        if x1 - x0 > 60:
            pen.text((x0 + 6, row + 2), command.name.lower(), (18, 21, 27), font(11, True))


def _draw_event(pen: Pen, event: Event, across: Across, row: int, end_ns: int) -> None:
    """Thin while it lasts, amber while only sight tells of it, red while the expert acts."""
    middle = row + 8
    if event.onset_ns:
        pen.line((across(event.onset_ns), middle, across(event.end_ns or end_ns), middle), fill=_DIM, width=2)
    if event.visible_ns and event.react_ns:
        pen.rectangle(
            (across(event.visible_ns), row + 3, across(event.react_ns), row + 13), fill=(240, 196, 84)
        )
        pen.rectangle((across(event.react_ns), row + 3, across(event.end_ns), row + 13), fill=_ALARM)
        words = "seen" if event.react_ns - event.visible_ns > 2 * NS_PER_S else ""
        pen.text((across(event.visible_ns) + 5, row + 2), words, (18, 21, 27), font(11, True))
        if event.end_ns - event.react_ns > 2 * NS_PER_S:
            pen.text((across(event.react_ns) + 5, row + 2), "acts", (18, 21, 27), font(11, True))


def _of_class(label: int) -> Color:
    r, g, b = (int(c) for c in CLASS_COLORS_RGB[label])
    return (r, g, b)


def _shade(color: Color, gain: float) -> Color:
    r, g, b = (min(int(c * gain), 255) for c in color)
    return (r, g, b)
