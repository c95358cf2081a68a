"""Roads, one junction at most, and the routes through them.

A road's forward direction is that of growing stations. `side` is the side a city drives on: -1 on the right
of the centerline, +1 on its left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from sparseoccvla.contracts import Command
from sparseoccvla.world.curves import Centerline, Path, fillet
from sparseoccvla.world.seeds import stream

BEHIND_M = 90.0  # road behind the ego at the start, so that the rear cameras see one
AHEAD_M = 420.0
CROSS_M = 230.0  # each arm of the crossing road
EDGE_MARGIN_M = 60.0  # traffic appears and ends this far from the ends of a road
CORNER_RADIUS_M = 6.5


class Layout(StrEnum):
    """What the road ahead does."""

    STRAIGHT = "straight"
    CURVE = "curve"
    TEE_THROUGH = "tee_through"  # the other road ends at ours
    TEE_END = "tee_end"  # our road ends at the other
    CROSS = "cross"


@dataclass(frozen=True)
class Profile:
    """Cross-section of a road, in meters."""

    lane_width_m: float
    lanes: int  # in each direction
    median_m: float  # strip between the directions, 0 for none
    parking_left_m: float  # 0 or the width of the parking strip
    parking_right_m: float
    verge_m: float  # planted strip between curb and sidewalk
    walk_m: float
    center_double: bool = False

    @property
    def left_m(self) -> float:
        """Offset of the left curb."""
        return self.median_m / 2 + self.lanes * self.lane_width_m + self.parking_left_m

    @property
    def right_m(self) -> float:
        """Offset of the right curb, negative."""
        return -(self.median_m / 2 + self.lanes * self.lane_width_m + self.parking_right_m)

    def lane_offset_m(self, lane: int, side: int, forward: bool = True) -> float:
        """Offset of a lane's center; lane 0 lies at the middle of the road."""
        offset = self.median_m / 2 + (lane + 0.5) * self.lane_width_m
        return offset * side * (1 if forward else -1)


@dataclass(frozen=True)
class Road:
    """A road between two stations of its centerline."""

    name: str
    line: Centerline
    profile: Profile
    start_m: float
    end_m: float
    junction_m: float | None = None  # station of the junction's center
    mouth_m: float = 0.0  # half length of the junction along this road

    def mouth_distance_m(self, s_m: ArrayLike) -> np.ndarray:
        """Distance of stations from the junction's edge, negative inside, `inf` without a junction."""
        if self.junction_m is None:
            return np.full(np.shape(s_m), np.inf)
        return np.abs(np.asarray(s_m, float) - self.junction_m) - self.mouth_m


@dataclass(frozen=True)
class Network:
    """All roads of a scene."""

    layout: Layout
    side: int
    main: Road
    cross: Road | None

    @property
    def roads(self) -> tuple[Road, ...]:
        return (self.main,) if self.cross is None else (self.main, self.cross)

    def lane_path(self, road: Road, lane: int, forward: bool) -> Path:
        """The whole lane from where the road starts to where it ends, in driving direction."""
        s = np.arange(road.start_m, road.end_m, 0.5)
        points = road.line.point_m(s, road.profile.lane_offset_m(lane, self.side, forward))
        return Path.through(points if forward else points[::-1])

    def lane_of(self, point_m: np.ndarray) -> int:
        """Number of the main road's lane that a point of its forward side lies in."""
        _, d = self.main.line.frenet(point_m[None])
        offset = abs(float(d[0])) - self.main.profile.median_m / 2
        return int(np.clip(offset // self.main.profile.lane_width_m, 0, self.main.profile.lanes - 1))

    def arm_path(self, road: Road, lane: int, forward: bool, leaving: bool) -> Path | None:
        """A lane from the junction outward, or from outside to its stop line; None without such an arm."""
        assert road.junction_m is not None
        out = forward == leaving  # whether it lies beyond the junction, where stations are larger
        low = road.junction_m + road.mouth_m if out else road.start_m
        high = road.end_m if out else road.junction_m - road.mouth_m
        if high - low < 40:
            return None
        s = np.arange(low, high, 0.5)
        points = road.line.point_m(s, road.profile.lane_offset_m(lane, self.side, forward))
        return Path.through(points if forward else points[::-1])

    def turn_path(self, lane_in: int, lane_out: int, command: Command, from_end: bool = False) -> Path:
        """From the main road onto the crossing road, LEFT or RIGHT of the driving direction.

        `from_end` comes the other way along the main road.
        """
        main, cross = self.main, self.cross
        assert cross is not None
        assert main.junction_m is not None
        assert cross.junction_m is not None
        offset_in = main.profile.lane_offset_m(lane_in, self.side, not from_end)
        direction = -1 if from_end else 1
        mouth = main.junction_m - direction * main.mouth_m
        s_in = np.arange(main.end_m if from_end else main.start_m, mouth, 0.5 * direction)
        point = main.line.point_m(mouth, offset_in)
        yaw = float(main.line.heading_rad(mouth)) + (np.pi if from_end else 0.0)
        # The crossing road's stations grow to the left of the main road.
        leftward = (command is Command.LEFT) != from_end
        s_out = np.arange(
            cross.junction_m + (cross.mouth_m if leftward else -cross.mouth_m),
            cross.end_m if leftward else cross.start_m,
            0.5 if leftward else -0.5,
        )
        offset_out = cross.profile.lane_offset_m(lane_out, self.side, leftward)
        line_out = cross.line.point_m(s_out, offset_out)
        yaw_out = float(cross.line.heading_rad(s_out[0])) + (0 if leftward else np.pi)
        bend = fillet((*point, yaw), (*line_out[0], yaw_out))
        return Path.through(np.concatenate([main.line.point_m(s_in, offset_in), bend, line_out[1:]]))


def _profile(rng: np.random.Generator, leftville: bool, narrow: bool) -> Profile:
    lanes = 1 if narrow or rng.random() < (0.65 if leftville else 0.45) else 2
    width = rng.uniform(2.85, 3.3) if leftville else rng.uniform(3.2, 3.7)
    median = rng.uniform(1.2, 3.0) if rng.random() < (0.2 if leftville else 0.3) else 0.0
    parking = [rng.uniform(2.1, 2.5) if rng.random() < 0.7 else 0.0 for _ in range(2)]
    verge = rng.uniform(1.0, 2.6) if rng.random() < 0.5 else 0.0
    return Profile(
        width, lanes, median, parking[0], parking[1], verge, rng.uniform(1.6, 3.6), bool(rng.random() < 0.5)
    )


def choose_route(seed: int) -> tuple[Layout, Command]:
    """The layout of a seed and what its route does there: LEFT, RIGHT and STRAIGHT are equally likely."""
    rng = stream(seed, "route")
    command = Command(int(rng.integers(1, 4)))
    if command is Command.STRAIGHT:
        choices: tuple[Layout, ...] = (
            Layout.STRAIGHT,
            Layout.CURVE,
            Layout.CURVE,
            Layout.TEE_THROUGH,
            Layout.CROSS,
        )
    else:
        choices = (Layout.TEE_THROUGH, Layout.TEE_END, Layout.CROSS, Layout.CROSS)
    return choices[int(rng.integers(len(choices)))], command


def make_network(seed: int, leftville: bool) -> tuple[Network, Path, Command]:
    """The roads of a seed, the ego's path along its lane and the route's command at the junction."""
    layout, command = choose_route(seed)
    rng = stream(seed, "roads")
    side = 1 if leftville else -1
    profile = _profile(rng, leftville, narrow=False)
    heading = float(rng.uniform(-np.pi, np.pi))
    if layout in (Layout.STRAIGHT, Layout.CURVE):
        line = _plain_line(rng, heading, curved=layout is Layout.CURVE)
        main = Road("main", line, profile, 0.0, line.length_m)
        network = Network(layout, side, main, None)
    else:
        network = _with_junction(rng, layout, command, side, profile, heading, leftville)
    lane = int(rng.integers(profile.lanes))
    if command is Command.STRAIGHT or network.cross is None:
        route = network.lane_path(network.main, lane, True)
    else:
        # Turns start and end in the lane nearest the side they turn to.
        outer = (command is Command.LEFT) == (side > 0)
        lane = profile.lanes - 1 if outer else 0
        lane_out = network.cross.profile.lanes - 1 if outer else 0
        route = network.turn_path(lane, lane_out, command)
    return network, route, command


def _plain_line(rng: np.random.Generator, heading: float, curved: bool) -> Centerline:
    if not curved:
        return Centerline((0.0, 0.0, heading), (BEHIND_M + AHEAD_M,), (0.0,))
    lengths: list[float] = [BEHIND_M + rng.uniform(10, 70)]
    curvatures = [0.0]
    while sum(lengths) < BEHIND_M + AHEAD_M - 80:
        radius = rng.uniform(35, 140)
        angle = np.deg2rad(rng.uniform(20, 80))
        lengths += [radius * angle, rng.uniform(15, 70)]
        curvatures += [float(rng.choice([-1, 1])) / radius, 0.0]
    lengths[-1] += 60.0
    return Centerline((0.0, 0.0, heading), tuple(lengths), tuple(curvatures))


def _with_junction(
    rng: np.random.Generator,
    layout: Layout,
    command: Command,
    side: int,
    profile: Profile,
    heading: float,
    leftville: bool,
) -> Network:
    junction = BEHIND_M + rng.uniform(45, 110)
    after = AHEAD_M - (junction - BEHIND_M)
    bend = float(rng.choice([-1, 1])) / rng.uniform(60, 200) if rng.random() < 0.5 else 0.0
    line = Centerline(
        (0.0, 0.0, heading), (junction + 60, 60.0, after - 120), (0.0, bend if after > 130 else 0.0, 0.0)
    )
    cross_profile = _profile(rng, leftville, narrow=rng.random() < 0.5)
    skew = np.deg2rad(rng.uniform(-14, 14))
    center = line.point_m(junction)
    cross_yaw = float(line.heading_rad(junction)) + np.pi / 2 + skew
    origin = center - CROSS_M * np.array([np.cos(cross_yaw), np.sin(cross_yaw)])
    cross_line = Centerline((float(origin[0]), float(origin[1]), cross_yaw), (2 * CROSS_M,), (0.0,))
    cross_start, cross_end = 0.0, 2 * CROSS_M
    if layout is Layout.TEE_THROUGH:
        leftward = command is Command.LEFT or (command is Command.STRAIGHT and rng.random() < 0.5)
        cross_start, cross_end = (CROSS_M, cross_end) if leftward else (cross_start, CROSS_M)
    main_end = junction if layout is Layout.TEE_END else line.length_m
    main_mouth = _mouth(cross_profile, profile, skew)
    cross_mouth = _mouth(profile, cross_profile, skew)
    main = Road("main", line, profile, 0.0, main_end, junction, main_mouth)
    cross = Road("cross", cross_line, cross_profile, cross_start, cross_end, CROSS_M, cross_mouth)
    return Network(layout, side, main, cross)


def _mouth(crossed: Profile, own: Profile, skew: float) -> float:
    """How far a junction reaches along a road that another one crosses."""
    half = max(crossed.left_m, -crossed.right_m)
    own_half = max(own.left_m, -own.right_m)
    return (half + own_half * abs(np.sin(skew))) / float(np.cos(skew)) + CORNER_RADIUS_M
