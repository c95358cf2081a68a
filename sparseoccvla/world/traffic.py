"""Everyday traffic: who else is on the road, whatever the hazards are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparseoccvla.contracts import Command
from sparseoccvla.world.curves import Path
from sparseoccvla.world.hazards import EgoPlan
from sparseoccvla.world.network import Layout, Network, Road
from sparseoccvla.world.plans import Plan
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.things import Thing, make

_KINDS = ("car", "truck", "bus", "motorcycle", "bicycle")
_SHARES = (0.78, 0.08, 0.04, 0.05, 0.05)
_TOP_SPEED = {"truck": 10.0, "bus": 9.0, "bicycle": 5.0}
_THROUGH, _WAITING = 4, 1  # priorities


def make_traffic(
    seed: int, colors: int, network: Network, ego: EgoPlan, command: Command
) -> tuple[list[Thing], list[Plan]]:
    """Vehicles on every lane and people on the sidewalks, with what they mean to do."""
    agents: list[Thing] = []
    plans: list[Plan] = []
    rng = stream(seed, "traffic")
    for path, stations, priority, wish in _flows(rng, network, ego, command):
        for station in stations:
            kind = str(rng.choice(_KINDS, p=_SHARES))
            speed = float(min(wish, _TOP_SPEED.get(kind, 99.0)))
            agents.append(make(kind, f"{kind}-{len(agents)}", seed, colors))
            plans.append(Plan(path, float(station), speed, speed, priority=priority))
    walkers = stream(seed, "walkers")
    for path in _footpaths(walkers, network):
        kind = "child" if walkers.random() < 0.12 else "pedestrian"
        speed = float(walkers.uniform(0.8, 1.6)) if walkers.random() < 0.8 else 0.0
        start = float(walkers.uniform(0, path.length_m * 0.7))
        agents.append(make(kind, f"{kind}-{len(agents)}", seed, colors))
        plans.append(Plan(path, start, speed, speed, reactive=False))
    return agents, plans


def _spread(rng: np.random.Generator, low: float, high: float, gap: tuple[float, float]) -> list[float]:
    stations, s = [], low + rng.uniform(0, gap[1])
    while s < high:
        stations.append(float(s))
        s += rng.uniform(*gap)
    return stations


def _flows(
    rng: np.random.Generator, network: Network, ego: EgoPlan, command: Command
) -> Iterator[tuple[Path, list[float], int, float]]:
    """(path, stations, priority, wished speed) of every lane's vehicles."""
    main, cross = network.main, network.cross
    through = network.layout is not Layout.TEE_END
    if rng.random() < 0.6:
        # Somebody behind the ego.
        behind = [ego.start_m - rng.uniform(16, 34)]
        yield ego.route, behind, _THROUGH, ego.limit_mps * rng.uniform(0.9, 1.05)
    own_lane = network.lane_of(ego.route.at(ego.start_m)[:2])
    for lane in range(main.profile.lanes):
        wish = ego.limit_mps * rng.uniform(0.8, 1.0)
        far = _spread(rng, ego.start_m + 140, ego.start_m + 260, (30, 60))
        near = _spread(rng, ego.start_m - 75, ego.start_m - 22, (25, 50))
        if lane != own_lane and through:
            yield network.lane_path(main, lane, True), near + far, _THROUGH, wish
    # Whoever turns across the oncoming lanes needs gaps in them.
    gap = (60.0, 160.0) if command is not Command.STRAIGHT else (22.0, 80.0)
    for lane in range(main.profile.lanes):
        path = network.lane_path(main, lane, False)
        yield path, _spread(rng, 5, path.length_m - 40, gap), _THROUGH, ego.limit_mps * rng.uniform(0.7, 1.0)
    if cross is not None:
        yield from _cross_flows(rng, network, cross, ego)


def _cross_flows(
    rng: np.random.Generator, network: Network, cross: Road, ego: EgoPlan
) -> Iterator[tuple[Path, list[float], int, float]]:
    middle = cross.junction_m or 0.0
    for forward in (True, False):
        for lane in range(cross.profile.lanes):
            wish = ego.limit_mps * rng.uniform(0.7, 0.95)
            leaving = network.arm_path(cross, lane, forward, leaving=True)
            arriving = network.arm_path(cross, lane, forward, leaving=False)
            stations = _spread(rng, 0, 150, (30, 75))
            waiting = _spread(rng, 20, 190, (40, 100))
            if leaving is not None:
                yield leaving, [s + 12 for s in stations], _THROUGH, wish
            if arriving is None:
                continue
            if network.layout is Layout.CROSS:
                path = network.lane_path(cross, lane, forward)
                edge = middle - cross.mouth_m if forward else cross.end_m - middle - cross.mouth_m
                yield path, [s for s in waiting if s < edge - 10], _WAITING, wish
            else:
                # They wait at the line: where they would turn, others drive.
                yield arriving, [s for s in waiting if s < arriving.length_m - 10], _WAITING, wish


def _footpaths(rng: np.random.Generator, network: Network) -> Iterator[Path]:
    """Walks along the sidewalks, from one junction to the next, in both directions."""
    for road in network.roads:
        profile = road.profile
        for side in (1, -1):
            curb = profile.left_m if side > 0 else profile.right_m
            for _ in range(int(rng.integers(4, 11))):
                inward = rng.uniform(0.45, 0.8)
                d = curb + side * (profile.verge_m + profile.walk_m * inward)
                start = rng.uniform(road.start_m + 5, road.end_m - 60)
                s = np.arange(start, min(start + 60, road.end_m - 5), 0.5)
                s = s[road.mouth_distance_m(s) > 3.0]
                # Only the part before a junction: nobody crosses it.
                gaps = np.nonzero(np.diff(s) > 0.6)[0]
                s = s[: gaps[0]] if len(gaps) else s
                if len(s) < 20:
                    continue
                points = road.line.point_m(s, d)
                yield Path.through(points if rng.random() < 0.5 else points[::-1])
