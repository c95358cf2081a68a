"""Who moves, along which path, and how fast they would like to go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseoccvla.world.curves import Path
from sparseoccvla.world.network import Network
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.things import Thing, make


@dataclass(frozen=True)
class Plan:
    """What an agent means to do."""

    path: Path
    start_m: float
    speed_mps: float


def make_traffic(seed: int, colors: int, network: Network) -> tuple[list[Thing], list[Plan]]:
    """Agents and their plans."""
    rng = stream(seed, "traffic")
    agents: list[Thing] = []
    plans = []
    for road in network.roads:
        for forward in (True, False):
            for lane in range(road.profile.lanes):
                if road is network.main and forward:
                    continue
                path = network.lane_path(road, lane, forward)
                speed = rng.uniform(7, 12)
                for start in np.arange(rng.uniform(0, 40), path.length_m - 250, rng.uniform(30, 60)):
                    agents.append(make("car", f"car-{len(agents)}", seed, colors))
                    plans.append(Plan(path, float(start), float(speed)))
    road = network.main
    for walker in range(20):
        side = 1 if walker % 2 else -1
        curb = road.profile.left_m if side > 0 else road.profile.right_m
        d = curb + side * (road.profile.verge_m + road.profile.walk_m * 0.5)
        path = Path.through(road.line.point_m(np.arange(road.start_m, road.end_m, 0.5), d))
        agents.append(make("pedestrian", f"pedestrian-{walker}", seed, colors))
        plans.append(Plan(path, float(rng.uniform(60, 260)), float(rng.uniform(0.8, 1.5))))
    return agents, plans
