"""What a keyframe shows, as plain facts: what `language` speaks of. docs/language.md defines every term.

Positions are in base_link at t0. Boxes are those of the keyframe time, moved there rigidly, as in the tables.
A fact that is too close to call is None, and nothing is said about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.geometry import inverse
from sparseoccvla.metrics.polygons import convex_touch
from sparseoccvla.world.boxes import corners_m
from sparseoccvla.world.cameras import CameraRig
from sparseoccvla.world.drive import Drive, Event
from sparseoccvla.world.ego import EGO_CENTER_M, EGO_LENGTH_M, EGO_WIDTH_M
from sparseoccvla.world.ground import DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN
from sparseoccvla.world.hazards import road_at
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.render import CameraImage
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.things import Thing

KINDS = {
    1: "barrier", 2: "bicycle", 3: "bus", 4: "car", 5: "excavator",
    6: "motorcycle", 7: "person", 8: "cone", 9: "trailer", 10: "truck",
}  # fmt: skip
GROUNDS = {DRIVEABLE: "road", OTHER_FLAT: "pavement", SIDEWALK: "sidewalk", TERRAIN: "grass"}
PLACES = ("ahead", "behind", "on the left", "on the right")

RANGE_M = 35.0  # things farther away are not spoken of
CLEAR_M = 42.0  # "there is none" holds out to here
PIXELS = 30.0  # least pixels of a thing in one camera, at a picture width of PIXELS_WIDTH
PIXELS_WIDTH = 352
AHEAD_DEG, BEHIND_DEG, EDGE_DEG = 30.0, 150.0, 4.0
MOVING_MPS, STANDING_MPS = 1.0, 0.1
HORIZON_S = 3.0
TURN_SPEED_MPS, TURN_RADIUS_M, TURN_MOST_MPS, TURN_S = 5.0, 10.0, 8.0, 4.0
STRAIGHT_LEAST_MPS, STRAIGHT_MOST_M = 2.0, 34.0
BESIDE_M = (5, 10, 15)
_ANGLES = np.arange(12) * np.pi / 6
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
DISC = np.concatenate([[[0.0, 0.0]], 0.5 * _CIRCLE, _CIRCLE])  # points within 1 m
CROWD_M = 75.0  # who may be hit within the horizon
OVERLAP_M, CLEARANCE_M = 0.3, 0.7  # a hit is at least this deep; a miss keeps at least this far
_STEP_S = 0.1
_REACH_M = 12.0  # no two centers of boxes that touch are farther apart

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeenThing:
    """An annotated thing within `CLEAR_M`, seen or not."""

    name: str
    kind: str  # a word of KINDS
    color: str  # "" where it has none to speak of
    x_m: float
    y_m: float
    pixels: float  # most in one camera, as if pictures were PIXELS_WIDTH wide
    slowest_mps: float  # from half a second before the keyframe to half a second after
    fastest_mps: float

    @property
    def distance_m(self) -> float:
        return float(np.hypot(self.x_m, self.y_m))

    @property
    def bearing_deg(self) -> float:
        """From straight ahead, positive to the left."""
        return float(np.degrees(np.arctan2(self.y_m, self.x_m)))

    @property
    def place(self) -> str:
        """One of PLACES, or "" near the border of two."""
        turned = abs(self.bearing_deg)
        if min(abs(turned - AHEAD_DEG), abs(turned - BEHIND_DEG)) < EDGE_DEG:
            return ""
        if turned < AHEAD_DEG:
            return "ahead"
        if turned > BEHIND_DEG:
            return "behind"
        return "on the left" if self.y_m > 0 else "on the right"

    @property
    def plain(self) -> bool:
        """Whether it may be spoken of: near enough, and enough of it in sight."""
        return self.pixels >= PIXELS and self.distance_m <= RANGE_M

    @property
    def moving(self) -> bool | None:
        if self.slowest_mps > MOVING_MPS:
            return True
        return False if self.fastest_mps < STANDING_MPS else None


@dataclass(frozen=True)
class WhatIf:
    """What would come of something that the ego does not do."""

    maneuver: str  # "straight", "left" or "right"
    leaves_road: bool | None
    hits: bool | None  # an annotated thing; None also where it leaves the road
    thing: SeenThing | None  # that it hits first


@dataclass(frozen=True)
class Cause:
    """An event that is in sight and holds the ego back, or will within the horizon."""

    event: Event
    thing: SeenThing  # to look at
    speed_mps: float  # its own
    braking: bool  # its brake lights are lit


@dataclass(frozen=True)
class KeyframeView:
    """All facts about one keyframe that anything is said about."""

    t0_ns: int
    city: str
    leftville: bool  # drives on the left
    weather: str
    hour: str
    lanes: int  # in each direction
    junction_m: float | None  # from the ego's front to the junction ahead, 0 inside it
    straight_on: bool | None  # the road goes straight on for 30 m
    way_left: bool | None  # a road leads off to the left
    way_right: bool | None
    grounds: dict[tuple[str, int], str]  # (side, meters) to a word of GROUNDS, where it is in plain sight
    speeds_mps: Array  # (31,) from t0 on, every 0.1 s; fewer where the drive ends
    turned_deg: float | None  # in HORIZON_S, positive left; None where the drive ends
    command: Command
    things: tuple[SeenThing, ...]  # nearest first
    what_if: tuple[WhatIf, ...]
    causes: tuple[Cause, ...]
    hazard: bool | None  # there is a cause; False only if no event is in sight or near its reaction

    def within(self, kind: str, place: str = "") -> list[SeenThing]:
        """The things of a kind at a place, or near enough to its border to be argued about."""
        return [t for t in self.things if t.kind == kind and (not place or _maybe_at(t, place))]


def look_around(scene: Scene, drive: Drive, stamp_ns: int, images: Sequence[CameraImage]) -> KeyframeView:
    """The view of the keyframe at `stamp_ns` (lidar time) whose cameras took `images`, cam_front first."""
    t0_ns = images[0].stamp_ns
    world_from_base = drive.world_from_base(t0_ns)
    base_from_world = inverse(world_from_base)
    crowd = Crowd(scene, drive, stamp_ns, base_from_world, images)
    ground = GroundView(scene, world_from_base)
    seconds = np.arange(0, HORIZON_S + _STEP_S / 2, _STEP_S)
    stamps = t0_ns + np.round(seconds * NS_PER_S).astype(np.int64)
    known = stamps[stamps <= drive.stamps_ns[-1]]
    speeds = np.interp(known - t0_ns, drive.stamps_ns - t0_ns, drive.speed_mps)
    whole = len(known) == len(stamps)
    causes = tuple(crowd.causes(t0_ns))
    return KeyframeView(
        t0_ns=t0_ns,
        city=scene.city.name,
        leftville=scene.city.side > 0,
        weather=scene.sky.weather,
        hour=scene.sky.hour,
        lanes=road_at(scene.network, world_from_base[:2, 3])[0].profile.lanes,
        junction_m=_junction_ahead(scene, world_from_base),
        straight_on=ground.straight_on(),
        way_left=ground.way_off(1),
        way_right=ground.way_off(-1),
        grounds=ground.beside(drive, images),
        speeds_mps=speeds,
        turned_deg=_turned_deg(drive, t0_ns) if whole else None,
        command=drive.command_at(t0_ns),
        things=crowd.things,
        what_if=tuple(what_ifs(crowd, ground, t0_ns, int(drive.stamps_ns[-1]), float(speeds[0])))
        if whole
        else (),
        causes=causes,
        hazard=True if causes else None if _anything_up(drive, t0_ns) else False,
    )


def _anything_up(drive: Drive, t0_ns: int) -> bool:
    """Whether an event is in sight, or the expert reacts to one about now."""
    soon_ns = t0_ns + round(HORIZON_S * NS_PER_S)
    return any(
        (event.end_ns == 0 or t0_ns < event.end_ns)
        and (0 < event.visible_ns <= t0_ns or 0 < event.react_ns <= soon_ns)
        for event in drive.events
    )


def _turned_deg(drive: Drive, t0_ns: int) -> float:
    now, then = (drive.world_from_base(t) for t in (t0_ns, t0_ns + round(HORIZON_S * NS_PER_S)))
    forward = now[:3, :3].T @ then[:3, 0]
    return float(np.degrees(np.arctan2(forward[1], forward[0])))


def _junction_ahead(scene: Scene, world_from_base: Array) -> float | None:
    if scene.junction_m is None:
        return None
    route = scene.ego_path
    station = np.linalg.norm(route.points_m - world_from_base[:2, 3], axis=1).argmin() * route.step_m
    first, last = scene.junction_m
    front = station + EGO_CENTER_M + EGO_LENGTH_M / 2
    return None if front > last else float(max(first - front, 0.0))


def _maybe_at(thing: SeenThing, place: str) -> bool:
    turned = abs(thing.bearing_deg)
    match place:
        case "ahead":
            return turned < AHEAD_DEG + EDGE_DEG
        case "behind":
            return turned > BEHIND_DEG - EDGE_DEG
        case _:
            side = thing.y_m > 0 if place == "on the left" else thing.y_m < 0
            return side and AHEAD_DEG - EDGE_DEG < turned < BEHIND_DEG + EDGE_DEG


class Crowd:
    """The annotated things around, now and in the next seconds."""

    def __init__(
        self,
        scene: Scene,
        drive: Drive,
        stamp_ns: int,
        base_from_world: Array,
        images: Sequence[CameraImage],
    ):
        self.drive, self.base_from_world = drive, base_from_world
        standing = [thing for thing in drive.standing if thing.category]
        self._catalog: list[Thing] = [*standing, *drive.agents]
        self._standing = np.array([thing.pose for thing in standing]).reshape(-1, 6)
        self._heights = np.array([thing.size_m[2] for thing in self._catalog])
        pixels = _pixels(images)
        half = NS_PER_S // 2
        centers = [self._centers(t) for t in (stamp_ns - half, stamp_ns, stamp_ns + half)]
        place = centers[1] @ base_from_world[:3, :3].T + base_from_world[:3, 3]
        # Speeds at three times: the mean over the half seconds between would hide a stop.
        speeds = np.array([self._speeds(t) for t in (stamp_ns - half, stamp_ns, stamp_ns + half)])
        near = np.nonzero(np.hypot(place[:, 0], place[:, 1]) < CLEAR_M)[0]
        seen = []
        for i in near:
            thing = self._catalog[i]
            if thing.label in KINDS:
                count = pixels.get(drive.instances[thing.name], 0.0)
                seen.append(
                    SeenThing(
                        thing.name,
                        KINDS[thing.label],
                        thing.color,
                        float(place[i, 0]),
                        float(place[i, 1]),
                        count,
                        float(speeds[:, i].min()),
                        float(speeds[:, i].max()),
                    )
                )
        self.things = tuple(sorted(seen, key=lambda thing: thing.distance_m))
        self._numbers = {thing.name: i for i, thing in enumerate(self._catalog)}
        self._crowd = np.nonzero(np.hypot(place[:, 0], place[:, 1]) < CROWD_M)[0]

    def _poses(self, stamp_ns: int) -> Array:
        return np.concatenate([self._standing, self.drive.agent_poses_at(stamp_ns)])

    def _centers(self, stamp_ns: int) -> Array:
        """(N, 3) centers of the boxes in the world."""
        matrices = matrices_of(self._poses(stamp_ns))
        return matrices[:, :3, 3] + matrices[:, :3, 2] * self._heights[:, None] / 2

    def _speeds(self, stamp_ns: int) -> Array:
        step_ns = NS_PER_S // 20
        moved = self._poses(stamp_ns + step_ns) - self._poses(stamp_ns)
        return np.linalg.norm(moved[:, :3], axis=1) * 20

    def outlines(self, stamps_ns: Sequence[int]) -> Array:
        """(T, N, 4, 2) corners of the things within `CROWD_M` in base_link at t0."""
        poses = np.array([self._poses(t)[self._crowd] for t in stamps_ns])
        flat = poses[..., :3] @ self.base_from_world[:3, :3].T + self.base_from_world[:3, 3]
        heading = np.arctan2(self.base_from_world[1, 0], self.base_from_world[0, 0])
        planar = np.concatenate([flat[..., :2], poses[..., 3:4] + heading], axis=-1)
        sizes = np.array([self._catalog[i].size_m[:2] for i in self._crowd]).reshape(-1, 2)
        return corners_m(planar, np.broadcast_to(sizes, (*planar.shape[:2], 2)))

    def name_of(self, column: int) -> str:
        """Whose outline it is."""
        return self._catalog[self._crowd[column]].name

    def causes(self, t0_ns: int) -> list[Cause]:
        """The events that are in sight now and hold the ego back, or will within the horizon."""
        soon_ns = t0_ns + round(HORIZON_S * NS_PER_S)
        found = []
        for event in self.drive.events:
            thing = next((t for t in self.things if t.name == event.thing and t.plain), None)
            in_sight = 0 < event.visible_ns <= t0_ns and thing is not None
            if thing is not None and in_sight and 0 < event.react_ns <= soon_ns and t0_ns < event.end_ns:
                agent = self._numbers[thing.name] - len(self._standing)
                look = self.drive.look_at(t0_ns)
                speed = float(self._speeds(t0_ns)[self._numbers[thing.name]])
                found.append(Cause(event, thing, speed, bool(look.braking[agent])))
        return found


def _pixels(images: Sequence[CameraImage]) -> dict[int, float]:
    """Most pixels of each instance in one camera, as if pictures were PIXELS_WIDTH wide."""
    most: dict[int, float] = {}
    for image in images:
        scale = (PIXELS_WIDTH / image.instance_ids.shape[1]) ** 2
        counts = np.bincount(image.instance_ids.ravel())
        for instance in np.flatnonzero(counts[1:]) + 1:
            most[int(instance)] = max(most.get(int(instance), 0.0), float(counts[instance]) * scale)
    return most


class GroundView:
    """What the ground is made of, seen from above in base_link at t0."""

    def __init__(self, scene: Scene, world_from_base: Array):
        self.ground, self.world_from_base = scene.ground, world_from_base

    def classes(self, points_m: Array) -> NDArray[np.uint8]:
        """Occ3D classes (...) at points (..., 2)."""
        flat = np.concatenate([points_m, np.zeros((*points_m.shape[:-1], 1))], axis=-1)
        world = flat @ self.world_from_base[:3, :3].T + self.world_from_base[:3, 3]
        return self.ground.class_at(world[..., :2])

    def _road(self, x_m: tuple[float, float], y_m: tuple[float, float]) -> NDArray[np.bool_]:
        """Whether each point of a grid of 1 m is road."""
        x, y = (np.arange(low, high + 0.5) for low, high in (x_m, y_m))
        return self.classes(np.stack(np.meshgrid(x, y), axis=-1)) == DRIVEABLE

    def straight_on(self) -> bool | None:
        if self._road((2, 31), (-1, 1)).all():
            return True
        return None if self._road((24, 32), (-2, 2)).any() else False

    def way_off(self, side: int) -> bool | None:
        inner, outer = ((24, 34), (20, 37)) if side > 0 else ((-34, -24), (-37, -20))
        if self._road((1, 34), inner).sum() >= 12:
            return True
        return None if self._road((-3, 37), outer).any() else False

    def beside(self, drive: Drive, images: Sequence[CameraImage]) -> dict[tuple[str, int], str]:
        """(side, meters) to the ground there, where it is the same all around and in plain sight."""
        places = [(side, distance_m) for side in ("left", "right") for distance_m in BESIDE_M]
        points = np.array([(0.0, m if side == "left" else -m) for side, m in places])
        around = self.classes(points[:, None] + DISC)
        world = np.concatenate([points, np.zeros((len(points), 1))], axis=1) @ self.world_from_base[:3, :3].T
        world += self.world_from_base[:3, 3]
        world[:, 2] = self.ground.height_m(world[:, :2])
        open_view = _in_sight(world, drive, images)
        return {
            place: GROUNDS[int(classes[0])]
            for place, classes, seen in zip(places, around, open_view, strict=True)
            if seen and (classes == classes[0]).all()
        }

    def leaves(self, path: Array) -> bool | None:
        """Whether somebody whose poses (T, 3) these are leaves the road."""
        near = self.classes(path[:, None, :2] + 0.8 * DISC) == DRIVEABLE
        if not near.any(axis=1).all():
            return True
        wide = self.classes(path[:, None, :2] + 1.4 * DISC) == DRIVEABLE
        return False if wide.all() else None


def _in_sight(points_world_m: Array, drive: Drive, images: Sequence[CameraImage]) -> NDArray[np.bool_]:
    """Which points (N, 3) of the ground a camera sees: those as deep as its picture says, within 1 m."""
    rig = CameraRig.nuscenes_like()
    seen = np.zeros(len(points_world_m), bool)
    for image in images:
        camera = rig[image.camera]
        height, width = image.depth_m.shape
        k = camera.calibration((width, height)).image_from_camera
        camera_from_world = inverse(drive.world_from_base(image.stamp_ns) @ camera.base_from_camera)
        x, y, z = (points_world_m @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]).T
        deep = np.maximum(z, 0.1)
        column = np.round(k[0, 0] * x / deep + k[0, 2]).astype(int)
        row = np.round(k[1, 1] * y / deep + k[1, 2]).astype(int)
        inside = (z > 0.5) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        depth = image.depth_m[row.clip(0, height - 1), column.clip(0, width - 1)]
        bare = image.instance_ids[row.clip(0, height - 1), column.clip(0, width - 1)] == 0
        seen |= inside & bare & (np.abs(depth - z) < 1.0)
    return seen


def maneuver_path(maneuver: str, speed_mps: float) -> Array:
    """Planar poses (T, 3) of the ego box's center in base_link at t0, every `_STEP_S`."""
    if maneuver == "straight":
        way = np.arange(0, HORIZON_S + _STEP_S / 2, _STEP_S) * speed_mps
        way = way[way <= STRAIGHT_MOST_M]
        base = np.stack([way, np.zeros_like(way), np.zeros_like(way)], axis=1)
    else:
        sign = 1 if maneuver == "left" else -1
        way = np.arange(0, TURN_S + _STEP_S / 2, _STEP_S) * TURN_SPEED_MPS
        yaw = np.minimum(way / TURN_RADIUS_M, np.pi / 2)
        after = np.maximum(way - TURN_RADIUS_M * np.pi / 2, 0)
        base = np.stack(
            [TURN_RADIUS_M * np.sin(yaw), sign * (TURN_RADIUS_M * (1 - np.cos(yaw)) + after), sign * yaw],
            axis=1,
        )
    forward = np.stack([np.cos(base[:, 2]), np.sin(base[:, 2])], axis=1)
    base[:, :2] += EGO_CENTER_M * forward
    return base


def what_ifs(crowd: Crowd, ground: GroundView, t0_ns: int, last_ns: int, speed_mps: float) -> list[WhatIf]:
    """What would come of each maneuver; the motion of others is known until `last_ns`."""
    stamps = t0_ns + np.round(np.arange(0, TURN_S + _STEP_S / 2, _STEP_S) * NS_PER_S).astype(np.int64)
    outlines = crowd.outlines(stamps[stamps <= last_ns].tolist())
    found = []
    for maneuver in ("straight", "left", "right"):
        if speed_mps < STRAIGHT_LEAST_MPS if maneuver == "straight" else speed_mps > TURN_MOST_MPS:
            continue
        path = maneuver_path(maneuver, speed_mps)
        if len(path) > len(outlines):
            continue
        leaves = ground.leaves(path)
        hits, thing = (None, None) if leaves is not False else _hit(crowd, path, outlines[: len(path)])
        found.append(WhatIf(maneuver, leaves, hits, thing))
    return found


def _hit(crowd: Crowd, path: Array, outlines: Array) -> tuple[bool | None, SeenThing | None]:
    """Whether the ego hits something on a path (T, 3), and what in plain sight it hits first."""
    offset = outlines.mean(axis=2) - path[:, None, :2]
    near = np.flatnonzero(np.hypot(offset[..., 0], offset[..., 1]).min(axis=0) < _REACH_M)
    outlines = outlines[:, near]
    slim, stout = (
        np.broadcast_to(
            corners_m(path, np.array([EGO_LENGTH_M + extra, EGO_WIDTH_M + extra]))[:, None], outlines.shape
        )
        for extra in (-2 * OVERLAP_M, 2 * CLEARANCE_M)
    )
    if not convex_touch(stout, outlines).any():
        return False, None
    hit = convex_touch(slim, outlines)
    if not hit.any():
        return None, None
    first = near[hit[hit.any(axis=1).argmax()].argmax()]
    name = crowd.name_of(int(first))
    thing = next((thing for thing in crowd.things if thing.name == name and thing.plain), None)
    return (True if thing else None), thing
