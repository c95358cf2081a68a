"""Scenery: what stands beside the roads. Each kind has its own random stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.world import props
from sparseoccvla.world.boxes import clearance_m
from sparseoccvla.world.ground import CELL_M, Channel, Ground, Patch
from sparseoccvla.world.network import Network, Road
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.shapes import Body, Color
from sparseoccvla.world.style import City
from sparseoccvla.world.things import Size, Thing, make

MANMADE, VEGETATION = 15, 16
Array = NDArray[np.float64]


@dataclass
class Plot:
    """Where something may still be put: keeps the rectangles that are taken."""

    ground: Ground
    poses: list[Array] = field(default_factory=list)
    sizes: list[Array] = field(default_factory=list)

    def free(self, pose: Array, size_m: Size, gap_m: float) -> bool:
        """Whether a rectangle keeps `gap_m` from everything taken."""
        if not self.poses:
            return True
        reach = max(size_m[0], size_m[1]) + 40.0
        poses, sizes = np.array(self.poses), np.array(self.sizes)
        near = np.abs(poses[:, :2] - pose[:2]).max(axis=1) < reach
        return bool((clearance_m(pose, np.array(size_m[:2]), poses[near], sizes[near]) > gap_m).all())

    def take(self, pose: Array, size_m: Size) -> None:
        self.poses.append(np.asarray(pose, float))
        self.sizes.append(np.array(size_m[:2]))

    def off_road(self, pose: Array, size_m: Size, margin_m: float) -> bool:
        """Whether a rectangle lies wholly beyond the sidewalks by `margin_m`, on the map."""
        x = np.linspace(-size_m[0] / 2, size_m[0] / 2, max(int(size_m[0] / 4), 1) + 1)
        y = np.linspace(-size_m[1] / 2, size_m[1] / 2, max(int(size_m[1] / 4), 1) + 1)
        local = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        c, s = np.cos(pose[2]), np.sin(pose[2])
        points = local @ np.array([[c, s], [-s, c]]) + pose[:2]
        low = np.array(self.ground.origin_m) + 4
        high = np.array(self.ground.origin_m) + CELL_M * (np.array(self.ground.fields.shape[:0:-1])) - 4
        fields = self.ground.sample(points)
        clear = (fields[Channel.OUTER] < -margin_m) & (fields[Channel.FLAT] < -0.3)
        return bool(clear.all() and (points > low).all() and (points < high).all())


def place(thing: Thing, ground: Ground, pose: Array) -> Thing:
    """The thing standing on the ground at a planar pose (3,); scenery stands upright."""
    size = thing.size_m if thing.category else (0.0, 0.0, 0.0)
    return replace(thing, pose=ground.rest(pose, size))


def sides(network: Network) -> Iterator[tuple[Road, int]]:
    """Both sides (+1 left, -1 right) of every road."""
    for road in network.roads:
        yield road, 1
        yield road, -1


def road_pose(road: Road, s_m: float, d_m: float, turn_rad: float = 0.0) -> Array:
    """World pose (3,) at road coordinates."""
    x, y = road.line.point_m(s_m, d_m)
    return np.array([x, y, float(road.line.heading_rad(s_m)) + turn_rad])


def curb_m(road: Road, side: int) -> float:
    return road.profile.left_m if side > 0 else road.profile.right_m


def paved_patches(seed: int, network: Network) -> tuple[Patch, ...]:
    """Forecourts and small squares beside the sidewalks: other_flat."""
    rng = stream(seed, "patches")
    patches = []
    for road, side in sides(network):
        for s in np.arange(road.start_m + 20, road.end_m - 20, 60.0):
            if rng.random() < 0.4:
                half = (rng.uniform(5, 14), rng.uniform(3, 6))
                beyond = road.profile.verge_m + road.profile.walk_m + half[1] - 0.3
                center = (float(s + rng.uniform(0, 30)), float(curb_m(road, side) + side * beyond))
                if road.mouth_distance_m(np.array(center[0])) > half[0] + 12:
                    patches.append(Patch(road, center, half))
    return tuple(patches)


def scenery(seed: int, colors: int, city: City, ground: Ground, plot: Plot) -> list[Thing]:
    """Buildings, street furniture and plants, in an order in which they find room."""
    things = _buildings(seed, colors, city, ground, plot)
    things += _street_furniture(seed, ground, plot)
    things += _plants(seed, city, ground, plot)
    return things


def _scenery(name: str, label: int, size: Size, body: Body, ground: Ground, pose: Array) -> Thing:
    kind = name.rsplit("-", 1)[0]
    return place(Thing(name, kind, label, size, body, np.zeros(6)), ground, pose)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...], spread: float = 0.08) -> Color:
    color = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(1 - spread, 1 + spread)
    r, g, b = np.clip(color, 0, 1)
    return (float(r), float(g), float(b))


def _buildings(seed: int, colors: int, city: City, ground: Ground, plot: Plot) -> list[Thing]:
    rng = stream(seed, "buildings")
    things: list[Thing] = []
    for road, side in sides(ground.network):
        s = road.start_m + rng.uniform(-4, 8)
        while s < road.end_m:
            width, depth = rng.uniform(8, 24), rng.uniform(8, 15)
            gabled = rng.random() < city.gabled
            height = rng.uniform(*city.height_m)
            if gabled:
                width, depth, height = min(width, 14.0), min(depth, 11.0), min(height, 10.5)
            setback = road.profile.verge_m + road.profile.walk_m + rng.uniform(*city.setback_m)
            pose = road_pose(road, s + width / 2, curb_m(road, side) + side * (setback + depth / 2))
            s += width + (rng.uniform(0.5, 5) if rng.random() < 0.75 else rng.uniform(12, 40))
            size = (float(width), float(depth), float(height))
            if not plot.off_road(pose, size, 0.3) or not plot.free(pose, size, 0.4):
                continue
            name = f"building-{len(things)}"
            paints = stream(colors, "paint", name)
            body = props.building(size, _pick(paints, city.walls), _pick(paints, city.roofs), gabled, 3.0)
            plot.take(pose, size)
            things.append(_scenery(name, MANMADE, size, body, ground, pose))
    return things


def _street_furniture(seed: int, ground: Ground, plot: Plot) -> list[Thing]:
    rng = stream(seed, "furniture")
    things: list[Thing] = []

    def put(kind: str, size: Size, body: Body, pose: Array, gap: float = 0.2) -> None:
        if plot.free(pose, size, gap):
            plot.take(pose, size)
            things.append(_scenery(f"{kind}-{len(things)}", MANMADE, size, body, ground, pose))

    for road, side in sides(ground.network):
        profile = road.profile
        curb = curb_m(road, side)
        spacing, phase = rng.uniform(24, 38), rng.uniform(0, 20)
        for s in np.arange(road.start_m + phase, road.end_m, spacing):
            if road.mouth_distance_m(s) < 2:
                continue
            # The arm of a lamp reaches along +y, over the road.
            pose = road_pose(road, s, curb + side * 0.45, np.pi if side > 0 else 0.0)
            put("lamp", (0.2, 0.2, 7.0), props.street_lamp(7.0, 1.8), pose)
        for s in rng.uniform(road.start_m, road.end_m, int((road.end_m - road.start_m) / 55)):
            if road.mouth_distance_m(s) < 4:
                continue
            color = ((0.75, 0.10, 0.10), (0.12, 0.28, 0.62), (0.93, 0.75, 0.12))[int(rng.integers(3))]
            facing = 0.0 if side == ground.network.side else np.pi
            pose = road_pose(road, s, curb + side * 0.6, facing)
            put("sign", (0.2, 0.9, 2.9), props.sign(color, bool(rng.random() < 0.6)), pose)
        if profile.walk_m > 2.6 and rng.random() < 0.6:
            s = rng.uniform(road.start_m + 20, road.end_m - 20)
            if road.mouth_distance_m(s) > 12:
                d = curb + side * (profile.verge_m + profile.walk_m - 0.9)
                pose = road_pose(road, s, d, 0.0 if side > 0 else np.pi)
                put("shelter", (4.0, 1.6, 2.6), props.shelter(), pose)
    return things


def _plants(seed: int, city: City, ground: Ground, plot: Plot) -> list[Thing]:
    rng = stream(seed, "plants")
    things: list[Thing] = []

    def grow_tree(pose: Array, low: float, high: float, crown_gap: float) -> None:
        conifer = rng.random() < city.conifers
        height = float(rng.uniform(low, high) * (1.25 if conifer else 1.0))
        leaf = _pick(rng, city.leaves, 0.12)
        trunk: Size = (crown_gap, crown_gap, height)
        if plot.free(pose, trunk, 0.2):
            plot.take(pose, (0.6, 0.6, height))
            body = props.tree(rng, height, leaf, conifer)
            things.append(_scenery(f"tree-{len(things)}", VEGETATION, trunk, body, ground, pose))

    for road, side in sides(ground.network):
        profile = road.profile
        curb, outer = curb_m(road, side), profile.verge_m + profile.walk_m
        for s in np.arange(road.start_m + rng.uniform(0, 8), road.end_m, rng.uniform(8, 13)):
            if profile.verge_m > 0.9 and road.mouth_distance_m(s) > 7 and rng.random() < 0.75:
                grow_tree(road_pose(road, s, curb + side * profile.verge_m / 2), 4.5, 7.0, 1.0)
        for s in rng.uniform(road.start_m, road.end_m, int((road.end_m - road.start_m) / 9)):
            d = curb + side * (outer + rng.uniform(1.5, 30.0) ** 1.0)
            pose = road_pose(road, s, d)
            if plot.off_road(pose, (3.0, 3.0, 1.0), 0.4):
                grow_tree(pose, 5.0, 11.0, 3.0)
        for s in np.arange(road.start_m + 3, road.end_m - 8, 7.5):
            kind, length = rng.random(), float(rng.uniform(3.0, 7.0))
            pose = road_pose(road, s, curb + side * (outer + 0.8))
            if kind < 0.25:
                size: Size = (length, 0.9, float(rng.uniform(0.8, 1.5)))
            elif kind < 0.45:
                size = (1.6, 1.5, float(rng.uniform(0.8, 1.4)))
            else:
                continue
            if plot.off_road(pose, size, 0.05) and plot.free(pose, size, 0.2):
                plot.take(pose, size)
                body = props.bush(rng, size, _pick(rng, city.leaves, 0.15))
                things.append(_scenery(f"bush-{len(things)}", VEGETATION, size, body, ground, pose))
    return things


def parked(seed: int, colors: int, ground: Ground, plot: Plot) -> list[Thing]:
    """Annotated things that stand: parked vehicles, bins, debris, bicycles on the sidewalk."""
    rng = stream(seed, "parked")
    things: list[Thing] = []
    kinds = ("car", "truck", "trailer", "parked_motorcycle", "construction_vehicle")
    shares = (0.80, 0.06, 0.06, 0.06, 0.02)

    def put(kind: str, road: Road, s: float, d: float, turn: float, gap: float = 0.5) -> float:
        name = f"{kind}-p{len(things)}"
        thing = make(kind, name, seed, colors)
        pose = road_pose(road, s + thing.size_m[0] / 2, d, turn)
        if plot.free(pose, thing.size_m, gap):
            plot.take(pose, thing.size_m)
            things.append(place(thing, ground, pose))
        return thing.size_m[0]

    for road, side in sides(ground.network):
        profile = road.profile
        width = profile.parking_left_m if side > 0 else profile.parking_right_m
        # Vehicles park in driving direction.
        turn = 0.0 if side == ground.network.side else np.pi
        curb = curb_m(road, side)
        s = road.start_m + rng.uniform(2, 10)
        share = rng.uniform(0.25, 0.8)
        while width > 0 and s < road.end_m - 8:
            kind = str(rng.choice(kinds, p=shares))
            skip, jitter, gap = rng.random() > share, rng.normal(0, 0.03), rng.uniform(0.8, 2.0)
            step = 5.5
            if not skip and road.mouth_distance_m(s + 3) > 11:
                step = put(kind, road, s, curb - side * width / 2, turn + jitter)
            s += step + gap
        for kind, share in (
            ("bin", 0.7),
            ("parked_bicycle", 0.9),
            ("debris", 0.3),
            ("parked_motorcycle", 0.2),
        ):
            for _ in range(rng.poisson(share * (road.end_m - road.start_m) / 100)):
                s = rng.uniform(road.start_m + 5, road.end_m - 5)
                d = curb + side * (0.55 + 0.3 * rng.random() * (profile.verge_m + profile.walk_m))
                if road.mouth_distance_m(s) > 6:
                    put(
                        kind,
                        road,
                        s,
                        d,
                        rng.uniform(-0.4, 0.4) + (np.pi / 2 if "bicycle" in kind else 0),
                        0.15,
                    )
    return things
