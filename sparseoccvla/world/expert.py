"""The ego's expert: follows its route, keeps its distance, yields, stops; sees no sooner than a person.

It knows of an agent once there has been a clear line of sight to it, and it acts on everything as it was
`REACTION_S` ago, continued at constant speed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.world.crossings import Crossing, crossing_of
from sparseoccvla.world.drive import DT_S
from sparseoccvla.world.ego import EGO_CENTER_M, EGO_LENGTH_M, EGO_WIDTH_M, WHEELBASE_M
from sparseoccvla.world.simulate import Control, DriverStyle, Simulation, leaders, must_wait

if TYPE_CHECKING:
    from sparseoccvla.world.scene import Scene

Array = NDArray[np.float64]

REACTION_S = 1.0
LATERAL_MPS2 = 2.2  # wanted at most in curves
SLOWING_MPS2 = 1.3  # toward curves and slow stretches
JERK_MPS3 = 4.0
EMERGENCY_JERK_MPS3 = 10.0
JUNCTION_MPS = 7.5  # approach to a junction
_EYE_M = 1.7  # of the camera ahead of the rear axle
_BODY_M = 0.35  # how far a walker's body and a safe margin reach beyond its center
_NOBODY = -1
HEADWAY_S = 1.5
STANDSTILL_M = 3.0


def keep_distance(v: float, gap_m: float, leader_v: float) -> float:
    """Acceleration behind a leader: gently toward a time gap, firmly when the leader may stop."""
    leader_v = max(leader_v, 0.0)
    gently = 0.15 * (gap_m - STANDSTILL_M - HEADWAY_S * v) + 0.6 * (leader_v - v)
    # What the leader drives on while it brakes as hard as people do is room as well.
    return min(gently, stop_within(v, gap_m - STANDSTILL_M + leader_v**2 / (2 * 4.0)))


def stop_within(v: float, room_m: float) -> float:
    """Acceleration that stops in front of a line: nothing until it takes real braking, then just enough."""
    if room_m <= 0.3:
        return -min(v * v / 0.6, 3.0) - 0.5
    needed = v * v / (2 * room_m)
    share = float(np.clip((needed - 0.7) / 0.7, 0, 1))
    return np.inf if share == 0 else -needed * share


class Expert:
    """One drive's driver; `binding` says which agent it last braked for, -1 for none."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.binding = _NOBODY
        self._limit_mps = speed_profile(scene)
        self._delay = round(REACTION_S / DT_S)
        self._seen_tick = np.full(len(scene.plans), np.iinfo(np.int64).max)
        self._screens = _screens(scene)
        self._walks = np.array([not plan.reactive and plan.meets is None for plan in scene.plans], bool)
        self._crossings: dict[int, Crossing | None] = {}
        self._waiting: set[int] = set()
        self._last = Control(0.0, 0.0)

    def control(self, sim: Simulation) -> Control:
        """What to do now. Call once per simulation step."""
        station, _, _ = sim.ego_lane.locate(sim.ego_pose[None])
        s = float(station[0])
        steering = self._steer(sim, s)
        if sim.tick % 2:
            return Control(self._last.acceleration_mps2, steering)
        self._look(sim)
        known = np.nonzero(self._seen_tick <= sim.tick - self._delay)[0]
        poses, speeds = self._remembered(sim)
        options = [(self._cruise(sim, s), _NOBODY)]
        options += self._follow(sim, known, poses, speeds)
        options += self._spare_walkers(sim, s, known, poses, speeds)
        options += self._wait_at_crossings(sim, s, known, speeds)
        wanted, self.binding = min(options)
        wanted = max(wanted, -7.5)
        step = 2 * DT_S * (JERK_MPS3 if wanted > -2.2 else EMERGENCY_JERK_MPS3)
        acceleration = float(np.clip(wanted, sim.ego_a - step, sim.ego_a + step))
        self._last = Control(acceleration, steering)
        return self._last

    def _steer(self, sim: Simulation, s: float) -> float:
        """Pure pursuit of the path from the rear axle."""
        reach = float(np.clip(1.5 + 0.55 * sim.ego_v, 3.0, 9.0))
        target = self.scene.ego_path.at(s + reach)[:2] - sim.ego_pose[:2]
        yaw = sim.ego_pose[2]
        left = -np.sin(yaw) * target[0] + np.cos(yaw) * target[1]
        return float(np.arctan(WHEELBASE_M * 2 * left / max(float(target @ target), 1.0)))

    def _look(self, sim: Simulation) -> None:
        """Note the agents that are in plain sight for the first time."""
        unseen = np.nonzero(self._seen_tick > sim.tick)[0]
        offset = sim.poses[unseen, :2] - sim.ego_pose[:2]
        near = unseen[(offset**2).sum(axis=1) < 100.0**2]
        yaw = sim.ego_pose[2]
        eye = sim.ego_pose[:2] + _EYE_M * np.array([np.cos(yaw), np.sin(yaw)])
        for i in near:
            if not blocked(eye, sim.poses[i, :2], self._screens):
                self._seen_tick[i] = sim.tick

    def _remembered(self, sim: Simulation) -> tuple[Array, Array]:
        """Poses (A, 3) and speeds (A,) of a reaction time ago, continued until now."""
        frame = sim.frames[max(sim.tick - self._delay, 0)]
        seconds = min(sim.tick, self._delay) * DT_S
        poses = frame.poses.copy()
        poses[:, 0] += np.cos(poses[:, 2]) * frame.speeds * seconds
        poses[:, 1] += np.sin(poses[:, 2]) * frame.speeds * seconds
        return poses, frame.speeds

    def _cruise(self, sim: Simulation, s: float) -> float:
        profile = self._limit_mps
        index = np.arange(len(profile)) * self.scene.ego_path.step_m
        ahead = s + np.array([0.2, 0.5, 0.9]) * max(sim.ego_v, 1.0)
        wish = float(np.interp(ahead, index, profile).min())
        if sim.ego_v > wish:
            return float(np.clip((wish - sim.ego_v) / 0.7, -2.6, 0))
        return float(DriverStyle().free(np.array(sim.ego_v), np.array(wish)))

    def _follow(
        self, sim: Simulation, known: NDArray[np.intp], poses: Array, speeds: Array
    ) -> list[tuple[float, int]]:
        """Keep the distance to the nearest thing in the lane."""
        known = known[~(self._walks[known] & (speeds[known] > 0.3))]  # who walks is looked at elsewhere
        everyone = np.concatenate([poses[known], sim.ego_box[None]])
        sizes = np.concatenate([sim.size[known, :2], [[EGO_LENGTH_M, EGO_WIDTH_M]]])
        v = np.append(speeds[known], sim.ego_v)
        station, offset, _ = sim.ego_lane.locate(everyone)
        me = np.array([len(known)])
        s, d = station.copy(), np.zeros_like(offset)
        gap, leader_v = leaders(sim.ego_lane, me, s, d, everyone, sizes, v, margin_m=0.35)
        if not np.isfinite(gap[0]):
            return []
        # Which one it was: the nearest whose gap that is.
        rank = int(self._nearest(sim, everyone, sizes, gap[0]))
        return [(keep_distance(sim.ego_v, float(gap[0]), float(leader_v[0])), int(known[rank]))]

    def _nearest(self, sim: Simulation, everyone: Array, sizes: Array, gap: float) -> int:
        station, _, turned = sim.ego_lane.locate(everyone)
        along = np.abs(np.cos(turned)) * sizes[:, 0] / 2 + np.abs(np.sin(turned)) * sizes[:, 1] / 2
        gaps = station - station[-1] - along - EGO_LENGTH_M / 2
        return int(np.abs(gaps[:-1] - gap).argmin())

    def _spare_walkers(
        self, sim: Simulation, s: float, known: NDArray[np.intp], poses: Array, speeds: Array
    ) -> list[tuple[float, int]]:
        """Stop for whoever walks into the way, unless one is well past before."""
        walkers = known[self._walks[known] & (speeds[known] > 0.3)]
        walkers = walkers[np.hypot(*(poses[walkers, :2] - sim.ego_pose[:2]).T) < 60.0]
        if len(walkers) == 0:
            return []
        front = s + EGO_CENTER_M + EGO_LENGTH_M / 2
        times = np.arange(0.0, 5.01, 0.25)
        yaw = poses[walkers, 2]
        heading = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
        future = poses[walkers, None, :2] + heading[:, None] * speeds[walkers, None, None] * times[:, None]
        flat = np.concatenate([future.reshape(-1, 2), np.zeros((future.shape[0] * len(times), 1))], axis=1)
        station, offset, _ = (x.reshape(len(walkers), len(times)) for x in sim.ego_lane.locate(flat))
        half = EGO_WIDTH_M / 2 + _BODY_M
        options = []
        for row, i in enumerate(walkers):
            inside = (np.abs(offset[row]) < half + 0.35) & (station[row] > front - 1.0)
            if not inside.any():
                continue
            first = int(inside.argmax())
            where = float(station[row, first])
            gap = where - front - 2.5
            passed = (where + EGO_LENGTH_M + 1.0 - front) / max(sim.ego_v, 0.5)
            if gap > 55 or passed < times[first] - 0.8:
                continue
            options.append((stop_within(sim.ego_v, gap), int(i)))
        return options

    def _wait_at_crossings(
        self, sim: Simulation, s: float, known: NDArray[np.intp], speeds: Array
    ) -> list[tuple[float, int]]:
        """Let those go first who may, where their path crosses the route."""
        front = s + EGO_CENTER_M + EGO_LENGTH_M / 2
        is_known = np.zeros(len(speeds), bool)
        is_known[known] = True
        rank = self.scene.ego_priority
        frame = sim.frames[max(sim.tick - self._delay, 0)]
        seconds = min(sim.tick, self._delay) * DT_S
        options = []
        for number, (lane, members) in enumerate(zip(sim.lanes, sim.lane_members, strict=True)):
            others = members[is_known[members] & ~self._walks[members]]
            if len(others) == 0 or sim.scene.junction_m is None:
                continue
            if number not in self._crossings:
                self._crossings[number] = crossing_of(self.scene.ego_path, lane.path)
            crossing = self._crossings[number]
            if crossing is None or front > crossing.own_m[0] + 0.5:
                continue
            distance = crossing.own_m[0] - front
            if distance > 50 or (
                sim.ego_v**2 > 2 * 4.5 * max(distance, 0.05) and number not in self._waiting
            ):
                continue
            wait = must_wait(
                distance,
                crossing.own_m[1] - crossing.own_m[0] + EGO_LENGTH_M,
                sim.ego_v,
                crossing,
                frame.stations[others] + speeds[others] * seconds,
                sim.size[others, 0] / 2,
                speeds[others],
                np.array([self.scene.plans[j].priority > rank for j in others]),
                2.0 if number in self._waiting else 1.4,
            )
            if wait:
                self._waiting.add(number)
                nearest = others[np.argmin(np.abs(frame.stations[others] - crossing.other_m[0]))]
                options.append((stop_within(sim.ego_v, distance - 0.7), int(nearest)))
            else:
                self._waiting.discard(number)
        return options


def speed_profile(scene: Scene) -> Array:
    """(P,) fastest comfortable speed at each vertex of the ego's path."""
    path = scene.ego_path
    stations = np.arange(len(path.points_m)) * path.step_m
    curvature = np.abs(path.curvatures_per_m)
    limit = np.minimum(scene.ego.limit_mps, np.sqrt(LATERAL_MPS2 / np.maximum(curvature, 1e-4)))
    for hazard in scene.hazards:
        if hazard.zone is not None:
            within = (stations > hazard.zone.start_m - 8) & (stations < hazard.zone.end_m)
            limit = np.where(within, np.minimum(limit, hazard.zone.speed_mps), limit)
    if scene.junction_m is not None:
        within = (stations > scene.junction_m[0] - 14) & (stations < scene.junction_m[1] - 6)
        limit = np.where(within, np.minimum(limit, JUNCTION_MPS), limit)
    # Every speed must be reachable from the one before by gentle braking.
    for i in range(len(limit) - 2, -1, -1):
        limit[i] = min(limit[i], np.sqrt(limit[i + 1] ** 2 + 2 * SLOWING_MPS2 * path.step_m))
    return limit


def _screens(scene: Scene) -> Array:
    """(N, 5) rectangles that hide what is behind them: x, y, yaw, length, width."""
    hiding = ("building", "car", "truck", "bus", "trailer", "construction_vehicle", "shelter")
    rows = [
        (thing.pose[0], thing.pose[1], thing.pose[3], thing.size_m[0], thing.size_m[1])
        for thing in scene.standing
        if thing.kind in hiding
    ]
    return np.array(rows).reshape(-1, 5)


def blocked(eye_m: Array, target_m: Array, screens: Array) -> bool:
    """Whether the line between two points (2,) meets one of the rectangles (N, 5)."""
    if len(screens) == 0:
        return False
    c, s = np.cos(screens[:, 2]), np.sin(screens[:, 2])

    def local(point: Array) -> tuple[Array, Array]:
        dx, dy = point[0] - screens[:, 0], point[1] - screens[:, 1]
        return c * dx + s * dy, -s * dx + c * dy

    (x0, y0), (x1, y1) = local(eye_m), local(target_m)
    enter, leave = np.zeros(len(screens)), np.ones(len(screens))
    for start, end, half in ((x0, x1, screens[:, 3] / 2), (y0, y1, screens[:, 4] / 2)):
        way = np.where(np.abs(end - start) < 1e-9, 1e-9, end - start)
        a, b = (-half - start) / way, (half - start) / way
        enter = np.maximum(enter, np.minimum(a, b))
        leave = np.minimum(leave, np.maximum(a, b))
    return bool((enter < leave).any())
