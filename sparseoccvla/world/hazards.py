"""Events that force a driver to look.

Every kind is planned for every seed in two slots, early and late, whether or not it takes part: so one can be
removed or added while everything else stays. A hazard's name is its kind and slot, e.g. "pedestrian-0".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import Command
from sparseoccvla.errors import InputError
from sparseoccvla.world.crossings import crossing_of
from sparseoccvla.world.curves import Path
from sparseoccvla.world.network import Layout, Network, Road
from sparseoccvla.world.plans import Plan, Step
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.things import Thing, make

Array = NDArray[np.float64]

# Kinds and how readily one is drawn where it is possible; those that seldom are weigh more.
KINDS = {
    "following": 0.5,
    "lead_brake": 0.8,
    "stopped_truck": 0.9,
    "pedestrian": 1.6,
    "cut_in": 1.1,
    "crossing": 2.4,
    "construction": 0.8,
    "cyclist": 0.9,
}
SLOTS = 2
# Vehicles that stay ahead in the ego's lane; behind them only some of the others can be met.
LEADS = ("following", "lead_brake")
_BEHIND_A_LEAD = ("pedestrian", "crossing", "cut_in", "cyclist", "construction")
_APART_M = 45.0


@dataclass(frozen=True)
class EgoPlan:
    """Where the ego starts and how fast it would like to go."""

    route: Path
    start_m: float
    speed_mps: float
    limit_mps: float


@dataclass(frozen=True)
class Zone:
    """A stretch of the route where the ego keeps to one side and slows down."""

    start_m: float
    end_m: float
    shift_m: float  # left of the route
    speed_mps: float

    def offset_m(self, s_m: Array) -> Array:
        """Offset from the route at stations: shifts over 18 m before and after."""
        ramp = 18.0
        part = np.clip(np.minimum(s_m - self.start_m + ramp, self.end_m + ramp - s_m) / ramp, 0, 1)
        return self.shift_m * part * part * (3 - 2 * part)


@dataclass(frozen=True)
class Hazard:
    """A named event: its agents in the order of importance, the first is the one to look at."""

    name: str
    kind: str
    station_m: float  # of the route
    things: tuple[Thing, ...]
    plans: tuple[Plan, ...]
    zone: Zone | None = None


@dataclass(frozen=True)
class Reserve:
    """Room beside the route that parked vehicles must leave: pose (3,), length and width."""

    pose: Array
    size_m: tuple[float, float]


@dataclass(frozen=True)
class HazardBook:
    """All hazards a scene can have, and what must stand ready for them in any case."""

    hazards: dict[str, Hazard]
    reserves: tuple[Reserve, ...]
    screens: tuple[tuple[Thing, Array], ...]  # parked vehicles that hide people, with poses (3,)

    def choose(self, seed: int, remove: Iterable[str] = (), add: Iterable[str] = ()) -> tuple[Hazard, ...]:
        """The hazards that take part: those drawn, less `remove`, plus `add`.

        Raises:
            InputError: a name that takes no part, or one that this scene can't have.
        """
        names = self.drawn(seed)
        for name in remove:
            if name not in names:
                raise InputError(
                    f"hazard {name!r} takes no part in scene {seed}, so it can't be removed; "
                    f"these do: {', '.join(names) or 'none'}"
                )
            names.remove(name)
        for name in add:
            if name not in self.hazards:
                raise InputError(
                    f"hazard {name!r} is not possible in scene {seed}; possible are {', '.join(self.hazards)}"
                )
            if name not in names:
                names.append(name)
        return tuple(self.hazards[name] for name in sorted(names))

    def drawn(self, seed: int) -> list[str]:
        """One hazard for each slot where possible."""
        rng = stream(seed, "hazards")
        share = np.array(list(KINDS.values())) / sum(KINDS.values())
        names: list[str] = []
        for slot in range(SLOTS):
            for kind in rng.choice(list(KINDS), len(KINDS), replace=False, p=share):
                # The junction comes when it comes.
                name = f"{kind}-{slot if kind != 'crossing' else 0}"
                if name in self.hazards and all(
                    self._fit(self.hazards[other], self.hazards[name]) for other in names
                ):
                    names.append(name)
                    break
        return names

    @staticmethod
    def _fit(first: Hazard, second: Hazard) -> bool:
        if first.kind == second.kind or second.kind in LEADS:
            return False
        if first.kind in LEADS:
            return second.kind in _BEHIND_A_LEAD
        return abs(second.station_m - first.station_m) > _APART_M


@dataclass(frozen=True)
class _Place:
    """What is beside the route at a station, in offsets from the route."""

    curb_m: float  # distance to the near curb
    parking_m: float  # width of the parking strip there
    far_curb_m: float
    lanes_between: int  # lanes of the same direction between this one and the near side


class Planner:
    """Plans every hazard of one scene."""

    def __init__(self, seed: int, colors: int, network: Network, ego: EgoPlan, command: Command):
        self.seed, self.colors = seed, colors
        self.network, self.ego, self.command = network, ego, command
        self.side = network.side
        self.junction_m = junction_stations(network, ego.route)

    def book(self) -> HazardBook:
        hazards: dict[str, Hazard] = {}
        reserves: list[Reserve] = []
        screens: list[tuple[Thing, Array]] = []
        for slot in range(SLOTS):
            for kind in KINDS:
                hazard = self._plan(kind, slot, reserves, screens)
                if hazard is not None:
                    hazards[hazard.name] = hazard
        return HazardBook(hazards, tuple(reserves), tuple(screens))

    def _plan(
        self, kind: str, slot: int, reserves: list[Reserve], screens: list[tuple[Thing, Array]]
    ) -> Hazard | None:
        rng = stream(self.seed, "hazard", kind, slot)
        name = f"{kind}-{slot}"
        # When the expert will have to act, if nothing else holds it up.
        act_s = rng.uniform(2.6, 4.0) if slot == 0 else rng.uniform(6.5, 9.0)
        match kind:
            case "following" | "lead_brake":
                return self._lead(name, kind, rng, act_s) if slot == 0 else None
            case "stopped_truck":
                return self._truck(name, rng, act_s)
            case "pedestrian":
                return self._pedestrian(name, rng, act_s, screens)
            case "cut_in":
                return self._cut_in(name, rng, act_s, reserves)
            case "crossing":
                return self._crossing(name, rng) if slot == 0 else None
            case "construction":
                return self._construction(name, rng, act_s, reserves)
            case _:
                return self._cyclist(name, rng, act_s, reserves)

    def _make(self, kind: str, name: str, color: str | None = None) -> Thing:
        return make(kind, name, self.seed, self.colors, color)

    def _station(self, wanted_m: float, before_m: float, after_m: float) -> float | None:
        """The first station from `wanted_m` on that is straight and clear of the junction."""
        route, end = self.ego.route, self.ego.start_m + 16.0 * self.ego.limit_mps
        for s in np.arange(wanted_m, min(end, self.ego.route.length_m - 80), 4.0):
            stretch = np.arange(s - before_m, s + after_m, 2.0)
            if np.abs(route.curvature_per_m(stretch)).max() > 1 / 90:
                continue
            if self.junction_m is not None:
                first, last = self.junction_m
                if s + after_m > first - 8 and s - before_m < last + 8:
                    continue
            return float(s)
        return None

    def _beside(self, s_m: float) -> _Place:
        x, y, yaw = self.ego.route.at(s_m)
        road, s, d = road_at(self.network, np.array([x, y]))
        direction = 1 if np.cos(yaw - float(road.line.heading_rad(s))) > 0 else -1
        near = self.side * direction
        profile = road.profile
        curb = profile.left_m if near > 0 else profile.right_m
        far = profile.right_m if near > 0 else profile.left_m
        parking = profile.parking_left_m if near > 0 else profile.parking_right_m
        room = abs(curb - d) - parking - profile.lane_width_m / 2
        return _Place(abs(curb - d), parking, abs(far - d), round(room / profile.lane_width_m))

    def _lead(self, name: str, kind: str, rng: np.random.Generator, act_s: float) -> Hazard:
        ego = self.ego
        start = ego.start_m + 9.0 + ego.speed_mps * rng.uniform(2.1, 2.9)
        if kind == "lead_brake":
            low = float(rng.choice([0.0, 2.0]))
            steps = (
                Step(after_s=act_s - 1.2, speed_mps=low, braking_mps2=float(rng.uniform(3.2, 4.6))),
                Step(after_s=rng.uniform(4.0, 6.0), speed_mps=ego.limit_mps * 1.1),
            )
        else:
            slow = ego.limit_mps * rng.uniform(0.4, 0.6)
            steps = (
                Step(after_s=act_s - 1.5, speed_mps=float(slow), braking_mps2=1.8),
                Step(after_s=rng.uniform(5.0, 8.0), speed_mps=ego.limit_mps * 0.95),
            )
        kinds = ["car", "car", "truck", "bus"] if kind == "following" else ["car", "car", "car", "truck"]
        thing = self._make(str(rng.choice(kinds)), f"{name}-lead")
        plan = Plan(
            ego.route, start + thing.size_m[0] / 2, ego.speed_mps, ego.limit_mps, steps=steps, hazard=name
        )
        return Hazard(name, kind, start, (thing,), (plan,))

    def _truck(self, name: str, rng: np.random.Generator, act_s: float) -> Hazard | None:
        station = self._station(self.ego.start_m + self.ego.limit_mps * act_s + 44.0, 12, 12)
        if station is None:
            return None
        thing = self._make(str(rng.choice(["truck", "truck", "bus"])), f"{name}-truck")
        leave = Step(ego_gap_m=12.0, signal=-self.side)
        drive = Step(after_s=rng.uniform(3.0, 6.0), speed_mps=self.ego.limit_mps * 0.9, signal=0)
        plan = Plan(self.ego.route, station, 0.0, 0.0, steps=(leave, drive), hazard=name)
        return Hazard(name, "stopped_truck", station, (thing,), (plan,))

    def _pedestrian(
        self, name: str, rng: np.random.Generator, act_s: float, screens: list[tuple[Thing, Array]]
    ) -> Hazard | None:
        station = self._station(self.ego.start_m + self.ego.limit_mps * act_s + 24.0, 14, 6)
        place = self._beside(station) if station is not None else None
        if station is None or place is None or place.parking_m == 0 or place.lanes_between > 0:
            return None
        screen = self._make("car", f"{name}-screen")
        middle = self.side * (place.curb_m - place.parking_m / 2)
        behind = station - 1.0 - screen.size_m[0] / 2
        screens.append((screen, self.ego.route.at(behind, middle)))
        kind = "child" if rng.random() < 0.3 else "pedestrian"
        thing = self._make(kind, f"{name}-walker")
        across = place.curb_m + place.far_curb_m + 2.0
        start = self.ego.route.at(station, self.side * (place.curb_m - 0.5))
        heading = start[2] - self.side * np.pi / 2
        line = start[:2] + np.linspace(0, across, 40)[:, None] * [np.cos(heading), np.sin(heading)]
        walk = Step(
            ego_arrival=(station, float(rng.uniform(4.6, 5.4))), speed_mps=float(rng.uniform(1.3, 1.8))
        )
        plan = Plan(Path.through(line), 0.0, 0.0, 0.0, reactive=False, steps=(walk,), hazard=name)
        return Hazard(name, "pedestrian", station, (thing,), (plan,))

    def _cut_in(
        self, name: str, rng: np.random.Generator, act_s: float, reserves: list[Reserve]
    ) -> Hazard | None:
        ego = self.ego
        station = self._station(ego.start_m + ego.limit_mps * act_s + 34.0, 20, 40)
        if station is None:
            return None
        place = self._beside(station)
        thing = self._make(str(rng.choice(["car", "car", "car", "truck"])), f"{name}-car")
        if place.lanes_between == 0 and place.parking_m > 0:
            # It pulls out of the parking strip.
            offset = self.side * (place.curb_m - place.parking_m / 2)
            reserves.append(Reserve(ego.route.at(station + 3.0, offset), (20.0, place.parking_m)))
            arrival = (station - thing.size_m[0] / 2, float(rng.uniform(4.6, 5.2)))
            steps = (
                Step(ego_arrival=(arrival[0], arrival[1] + 1.4), signal=-self.side),
                Step(ego_arrival=arrival, speed_mps=ego.limit_mps * 0.7, offset_m=0.0, over_s=3.2),
                Step(after_s=6.0, speed_mps=ego.limit_mps),
            )
            plan = Plan(ego.route, station, 0.0, 0.0, offset, reactive=True, steps=steps, hazard=name)
            return Hazard(name, "cut_in", station, (thing,), (plan,))
        if self.network.main.profile.lanes < 2 or self.command is not Command.STRAIGHT:
            return None
        profile = self.network.main.profile
        # The ego's lane is on either side of the other one.
        offset = self.side * profile.lane_width_m * (1 if place.lanes_between > 0 else -1)
        slow = ego.limit_mps * rng.uniform(0.6, 0.72)
        start = ego.start_m + 20.0 + (ego.limit_mps * 0.95 - slow) * act_s
        steps = (
            Step(ego_gap_m=30.0, signal=-1 if offset > 0 else 1),
            Step(after_s=1.2, offset_m=0.0, over_s=3.0),
            Step(after_s=5.0, speed_mps=ego.limit_mps * 1.05),
        )
        plan = Plan(ego.route, start, float(slow), float(slow), offset, steps=steps, hazard=name)
        return Hazard(name, "cut_in", station, (thing,), (plan,))

    def _crossing(self, name: str, rng: np.random.Generator) -> Hazard | None:
        """Somebody with the right of way, timed to meet the ego in the junction."""
        network, ego = self.network, self.ego
        if network.cross is None:
            return None
        paths = []
        if network.layout in (Layout.CROSS, Layout.TEE_END):
            paths = [network.lane_path(network.cross, 0, forward) for forward in (True, False)]
        if self.command is not Command.STRAIGHT and network.layout is not Layout.TEE_END:
            paths.append(network.lane_path(network.main, 0, False))
        rng.shuffle(paths)  # type: ignore[arg-type]
        for path in paths:
            crossing = crossing_of(ego.route, path)
            if crossing is None:
                continue
            kind = str(rng.choice(["car", "car", "truck", "bus", "motorcycle"]))
            thing = self._make(kind, f"{name}-{kind}")
            meets = (sum(crossing.other_m) / 2, crossing.own_m[0] - 1.0)
            away = ego.limit_mps * 0.8 * (meets[1] - ego.start_m) / ego.limit_mps
            start = max(meets[0] - max(away, 50.0), 12.0)
            plan = Plan(path, start, 8.0, 10.0, reactive=False, priority=6, meets=meets, hazard=name)
            return Hazard(name, "crossing", meets[1], (thing,), (plan,))
        return None

    def _construction(
        self, name: str, rng: np.random.Generator, act_s: float, reserves: list[Reserve]
    ) -> Hazard | None:
        length = float(rng.uniform(16, 28))
        station = self._station(self.ego.start_m + self.ego.limit_mps * act_s + 34.0, 30, length + 24)
        if station is None:
            return None
        place = self._beside(station)
        side, lane = self.side, self.network.main.profile.lane_width_m
        if place.lanes_between > 0:
            shift, edge = 0.0, lane * 0.62
        elif place.parking_m > 0 or place.curb_m > 2.6:
            shift, edge = -side * 0.45, 1.15
        else:
            return None
        if place.curb_m - edge < 2.4:
            return None
        outer = place.curb_m - 0.3
        zone = Zone(station - 4.0, station + length + 2.0, shift, float(rng.uniform(4.5, 6.0)))
        middle = side * (edge + outer) / 2
        reserves.append(
            Reserve(self.ego.route.at(station + length / 2, middle), (length + 16, outer - edge + 1))
        )
        things: list[tuple[Thing, float, float, float]] = []
        vehicle = self._make("construction_vehicle", f"{name}-vehicle")
        room = (outer - edge - vehicle.size_m[1]) / 2
        things.append(
            (
                vehicle,
                station + length * 0.6,
                side * (edge + 0.3 + vehicle.size_m[1] / 2 + max(room, 0) * 0.5),
                0.0,
            )
        )
        for k in range(5):
            part = k / 4
            things.append(
                (
                    self._make("traffic_cone", f"{name}-cone{k}"),
                    station - 6 + 6 * part,
                    side * (outer + (edge - outer) * part),
                    0.0,
                )
            )
        for k, s in enumerate(np.arange(station + 2.0, station + length, 2.6)):
            things.append((self._make("barrier", f"{name}-barrier{k}"), float(s), side * edge, np.pi / 2))
        for k in range(int(rng.integers(1, 3))):
            things.append(
                (
                    self._make("worker", f"{name}-worker{k}"),
                    station + length * rng.uniform(0.1, 0.35),
                    side * (edge + rng.uniform(0.8, 1.6)),
                    float(rng.uniform(-3, 3)),
                )
            )
        plans = []
        for _, s, d, turn in things:
            pose = self.ego.route.at(s, d)
            spot = pose[:2] + np.linspace(0, 1, 3)[:, None] * [np.cos(pose[2] + turn), np.sin(pose[2] + turn)]
            plans.append(Plan(Path.through(spot), 0.0, 0.0, 0.0, reactive=False, hazard=name))
        return Hazard(name, "construction", station, tuple(t for t, *_ in things), tuple(plans), zone)

    def _cyclist(
        self, name: str, rng: np.random.Generator, act_s: float, reserves: list[Reserve]
    ) -> Hazard | None:
        ego, side = self.ego, self.side
        kind = "bicycle" if rng.random() < 0.7 else "motorcycle"
        thing = self._make(kind, f"{name}-rider")
        speed = float(rng.uniform(3.5, 5.0)) if kind == "bicycle" else float(rng.uniform(5.0, 6.5))
        station = self._station(ego.start_m + ego.limit_mps * act_s + 30.0, 16, 50)
        if station is None:
            return None
        place = self._beside(station)
        if place.lanes_between > 0:
            return None
        if place.parking_m > 0:
            # From between parked cars onto the lane.
            offset = side * (place.curb_m - place.parking_m / 2)
            reserves.append(Reserve(ego.route.at(station + 2.0, offset), (14.0, place.parking_m)))
            steps = (
                Step(
                    ego_arrival=(station, float(rng.uniform(4.4, 5.0))),
                    speed_mps=speed,
                    offset_m=side * 0.35,
                    over_s=2.4,
                ),
            )
            plan = Plan(ego.route, station, 0.0, 0.0, offset, steps=steps, hazard=name)
        else:
            start = ego.start_m + 34.0 + (ego.limit_mps - speed) * act_s
            offset = side * (self.network.main.profile.lane_width_m / 2 - 0.6)
            plan = Plan(ego.route, start, speed, speed, offset, hazard=name)
        return Hazard(name, "cyclist", station, (thing,), (plan,))


def road_at(network: Network, point_m: Array) -> tuple[Road, float, float]:
    """The road a point lies on, with its station and offset: the one it lies deepest in."""
    best: tuple[float, Road, float, float] | None = None
    for road in network.roads:
        s, d = _frenet(road, point_m)
        depth = min(road.profile.left_m - d, d - road.profile.right_m, s - road.start_m, road.end_m - s)
        if best is None or depth > best[0]:
            best = (depth, road, s, d)
    assert best is not None
    return best[1:]


def _frenet(road: Road, point_m: Array) -> tuple[float, float]:
    s, d = road.line.frenet(point_m[None])
    return float(s[0]), float(d[0])


def junction_stations(network: Network, route: Path) -> tuple[float, float] | None:
    """The first and last station of a route inside the junction."""
    if network.cross is None:
        return None
    stations = np.arange(0, route.length_m, 1.0)
    points = route.at(stations)[:, :2]
    inside = np.zeros(len(stations), bool)
    for road in network.roads:
        s, d = road.line.frenet(points)
        within = (d < road.profile.left_m) & (d > road.profile.right_m)
        inside |= within & (road.mouth_distance_m(s) < 0)
    return float(stations[inside].min()), float(stations[inside].max())
