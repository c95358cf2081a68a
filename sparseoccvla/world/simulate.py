"""Motion, one step at a time: the ego's vehicle model and agents that keep their distance.

Nobody here decides where the ego goes: the expert (`expert.py`) does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.world.crossings import Crossing, Lane, crossing_of
from sparseoccvla.world.curves import Bundle
from sparseoccvla.world.drive import DT_S, START_NS, Drive, Event
from sparseoccvla.world.ego import EGO_CENTER_M, EGO_LENGTH_M, EGO_WIDTH_M, WHEELBASE_M
from sparseoccvla.world.plans import Plan

if TYPE_CHECKING:
    from sparseoccvla.world.scene import Scene

Array = NDArray[np.float64]

MAX_STEERING_RAD = 0.55
MAX_STEERING_RATE_RADPS = 0.7
MAX_ACCELERATION_MPS2 = 3.0
MAX_BRAKING_MPS2 = 8.0
_SIGHT_M = 90.0


@dataclass(frozen=True)
class Control:
    """What the ego's driver asks for."""

    acceleration_mps2: float
    steering_rad: float  # road-wheel angle, positive left


@dataclass(frozen=True)
class DriverStyle:
    """The intelligent driver model's numbers."""

    headway_s: float = 1.4
    standstill_m: float = 2.2
    gain_mps2: float = 1.5
    braking_mps2: float = 2.0

    def follow(self, v: Array, gap_m: Array, leader_v: Array) -> Array:
        """Acceleration that a leader allows; the free road is looked at elsewhere."""
        closing = v * (v - leader_v) / (2 * np.sqrt(self.gain_mps2 * self.braking_mps2))
        wanted = self.standstill_m + np.maximum(v * self.headway_s + closing, 0)
        return self.gain_mps2 * (1 - (wanted / np.maximum(gap_m, 0.1)) ** 2)

    def free(self, v: Array, wish: Array) -> Array:
        """Acceleration on an empty road; too fast means gentle braking."""
        ratio = v / np.maximum(wish, 0.1)
        slower = self.gain_mps2 * (1 - np.minimum(ratio, 1.0) ** 4)
        return np.where(ratio > 1, np.maximum(-0.8 * (v - wish), -self.braking_mps2), slower)


@dataclass(frozen=True)
class Frame:
    """Everything at one step."""

    ego_pose: Array  # (3,) base_link
    ego_v: float
    ego_a: float
    yaw_rate: float
    steering: float
    command: Command
    poses: Array  # (A, 3)
    stations: Array  # (A,)
    speeds: Array  # (A,)
    accelerations: Array  # (A,)
    signals: NDArray[np.int8]  # (A,)


class Simulation:
    """Agents and the ego at one time, and the record of how they came there.

    Agents are numbered as in `scene.agents`. Ego poses are those of base_link.
    """

    def __init__(self, scene: Scene, start_ns: int = START_NS):
        self.scene = scene
        self.start_ns = start_ns
        plans = scene.plans
        self.plans = plans
        self.tick = 0
        self.s = np.array([plan.start_m for plan in plans])
        self.d = np.array([plan.offset_m for plan in plans])
        self.d_rate = np.zeros(len(plans))
        self.v = np.array([plan.speed_mps for plan in plans])
        self.a = np.zeros(len(plans))
        self.wish = np.array([plan.wish_mps for plan in plans])
        self.braking = np.full(len(plans), np.nan)
        self.signal = np.zeros(len(plans), np.int8)
        self.first_step_tick = np.zeros(len(plans), int)  # when the first step was taken, 0 before
        self.size = np.array([thing.size_m for thing in scene.agents]).reshape(-1, 3)
        self._reactive = np.array([plan.reactive for plan in plans], bool)
        self._step = [0] * len(plans)
        self._since = [0.0] * len(plans)
        self._shift: dict[int, tuple[float, float, float, float]] = {}  # from, to, start time, duration
        self._bundle = Bundle(tuple(plan.path for plan in plans))
        self._length = np.array([plan.path.length_m for plan in plans])
        self.lanes, self.lane_members = _lanes(plans)
        self._crossings = _crossings(self.lanes, plans, self.lane_members)
        self._ego_crossings: dict[int, Crossing | None] = {}
        self.ego_lane = Lane(scene.ego_path)
        start = scene.ego_path.at(scene.ego.start_m)
        self.ego_pose = np.array(start)
        self.ego_v, self.ego_a, self.steering = scene.ego.speed_mps, 0.0, 0.0
        self.poses = self._poses()
        self._planned = np.zeros(len(plans))
        self.frames: list[Frame] = []
        self._note(0.0)

    @property
    def t_s(self) -> float:
        return self.tick * DT_S

    @property
    def now_ns(self) -> int:
        return self.start_ns + round(self.t_s * NS_PER_S)

    @property
    def ego_box(self) -> Array:
        """(3,) center and yaw of the ego's rectangle."""
        c, s = np.cos(self.ego_pose[2]), np.sin(self.ego_pose[2])
        return self.ego_pose + np.array([EGO_CENTER_M * c, EGO_CENTER_M * s, 0])

    def step(self, control: Control) -> None:
        """Advance everything by `DT_S`."""
        if self.tick % 2 == 0:
            self._planned = self._decide()
        self._take_steps()
        self._move_agents(self._planned)
        rate = self._move_ego(control)
        self.tick += 1
        self.poses = self._poses()
        self._note(rate)

    # --- the ego -------------------------------------------------------------------------------------

    def _move_ego(self, control: Control) -> float:
        """Kinematic bicycle about the rear axle, exact for constant steering; returns the yaw rate."""
        reach = MAX_STEERING_RATE_RADPS * DT_S
        wanted = np.clip(control.steering_rad, -MAX_STEERING_RAD, MAX_STEERING_RAD)
        self.steering += float(np.clip(wanted - self.steering, -reach, reach))
        a = float(np.clip(control.acceleration_mps2, -MAX_BRAKING_MPS2, MAX_ACCELERATION_MPS2))
        v = max(self.ego_v + a * DT_S, 0.0)
        mean = (self.ego_v + v) / 2
        rate = mean * np.tan(self.steering) / WHEELBASE_M
        x, y, yaw = self.ego_pose
        turn = rate * DT_S
        chord = mean * DT_S * np.sinc(turn / (2 * np.pi))
        self.ego_pose = np.array(
            [x + chord * np.cos(yaw + turn / 2), y + chord * np.sin(yaw + turn / 2), yaw + turn]
        )
        self.ego_a = (v - self.ego_v) / DT_S
        self.ego_v = v
        return float(rate)

    # --- agents --------------------------------------------------------------------------------------

    def _poses(self) -> Array:
        """(A, 3) center and yaw of every agent."""
        poses = self._bundle.at(self.s, self.d)
        poses[:, 2] += np.arctan2(self.d_rate, np.maximum(self.v, 0.5))
        return poses

    def _ego_on_route(self) -> tuple[float, float]:
        """Station of the ego's front bumper on its route, and its speed."""
        station, _, _ = self.ego_lane.locate(self.ego_pose[None])
        return float(station[0]) + EGO_CENTER_M + EGO_LENGTH_M / 2, self.ego_v

    def _take_steps(self) -> None:
        waiting = [i for i, plan in enumerate(self.plans) if self._step[i] < len(plan.steps)]
        if not waiting:
            return
        front, speed = self._ego_on_route()
        stations, _, _ = self.ego_lane.locate(self.poses[waiting])
        for i, station in zip(waiting, stations, strict=True):
            step = self.plans[i].steps[self._step[i]]
            gap = station - self.size[i, 0] / 2 - front
            ready = self.t_s - self._since[i] >= step.after_s and gap <= step.ego_gap_m
            if step.ego_arrival is not None:
                where, seconds = step.ego_arrival
                ready = ready and where - front <= seconds * max(speed, 0.5)
            if ready:
                self._take(i)

    def _take(self, i: int) -> None:
        step = self.plans[i].steps[self._step[i]]
        if step.speed_mps is not None:
            self.wish[i] = step.speed_mps
            self.braking[i] = np.nan if step.braking_mps2 is None else step.braking_mps2
        if step.offset_m is not None:
            self._shift[i] = (self.d[i], step.offset_m, self.t_s, step.over_s)
        if step.signal is not None:
            self.signal[i] = step.signal
        if self._step[i] == 0:
            self.first_step_tick[i] = self.tick
        self._step[i] += 1
        self._since[i] = self.t_s

    def _move_agents(self, acceleration: Array) -> None:
        v = np.maximum(self.v + acceleration * DT_S, 0.0)
        self.s = self.s + (self.v + v) / 2 * DT_S
        self.a = (v - self.v) / DT_S
        self.v = v
        self.d_rate[:] = 0.0
        for i, (start, end, since, over) in list(self._shift.items()):
            part = np.clip((self.t_s + DT_S - since) / over, 0, 1)
            d = start + (end - start) * part * part * (3 - 2 * part)
            self.d_rate[i] = (d - self.d[i]) / DT_S
            self.d[i] = d
            if part >= 1:
                del self._shift[i]
                self.signal[i] = 0

    def _decide(self) -> Array:
        """(A,) accelerations."""
        style = DriverStyle()
        acceleration = style.free(self.v, self.wish)
        hard = ~np.isnan(self.braking) & (self.v > self.wish)
        acceleration = np.where(hard, -np.nan_to_num(self.braking), acceleration)
        ego_front, ego_speed = self._ego_on_route()
        for i, plan in enumerate(self.plans):
            if plan.meets is not None and self.s[i] < plan.meets[0] - 14.0:
                seconds = max(plan.meets[1] - ego_front, 0.5) / max(ego_speed, 2.0)
                wish = np.clip((plan.meets[0] - self.s[i]) / seconds, 5.0, 12.5)
                acceleration[i] = np.clip((wish - self.v[i]) / 0.8, -2.0, 2.0)
            if not plan.reactive and plan.meets is None:
                acceleration[i] = np.clip((self.wish[i] - self.v[i]) / 0.4, -3.0, 2.5)
        everyone = np.concatenate([self.poses, self.ego_box[None]])
        sizes = np.concatenate([self.size[:, :2], [[EGO_LENGTH_M, EGO_WIDTH_M]]])
        speeds = np.append(self.v, self.ego_v)
        for lane, members in zip(self.lanes, self.lane_members, strict=True):
            drivers = members[self._reactive[members]]
            if len(drivers):
                gap, leader_v = leaders(lane, drivers, self.s, self.d, everyone, sizes, speeds)
                acceleration[drivers] = np.minimum(
                    acceleration[drivers], style.follow(self.v[drivers], gap, leader_v)
                )
        # Where a path ends, one stops; people on foot just stand still there.
        left = self._length - self.s
        stop = style.follow(self.v, np.maximum(left - 3.0, 0.1), np.zeros_like(left))
        stop = np.where(self._reactive, stop, np.where(left < 0.5, -3.0, np.inf))
        acceleration = np.minimum(acceleration, stop)
        self._yield(acceleration, style)
        # A vehicle in a hurry to stop never rolls backward, and never brakes harder than tires allow.
        return np.clip(acceleration, -MAX_BRAKING_MPS2, MAX_ACCELERATION_MPS2)

    def _ego_crossing(self, number: int) -> Crossing | None:
        """Where a lane meets the ego's route, for those who must let the ego go first."""
        if number not in self._ego_crossings:
            low = min(self.plans[i].priority for i in self.lane_members[number])
            crossing = None
            if low < self.scene.ego_priority and any(self._reactive[self.lane_members[number]]):
                crossing = crossing_of(self.lanes[number].path, self.ego_lane.path)
            self._ego_crossings[number] = crossing
        return self._ego_crossings[number]

    def _yield(self, acceleration: Array, style: DriverStyle) -> None:
        """Brake whoever has to let others go first at a crossing of their paths."""
        half = self.size[:, 0] / 2
        rank = np.array([plan.priority for plan in self.plans])
        front, speed = self._ego_on_route()
        ego = (np.array([front - EGO_LENGTH_M / 2]), np.array([EGO_LENGTH_M / 2]), np.array([speed]))
        ways = [
            (a, crossing, (self.s[others], half[others], self.v[others]), rank[others])
            for a, b, crossing in self._crossings
            for others in (self.lane_members[b],)
        ]
        for a in range(len(self.lanes)):
            crossing = self._ego_crossing(a)
            if crossing is not None:
                ways.append((a, crossing, ego, np.array([self.scene.ego_priority])))
        for a, crossing, others, other_rank in ways:
            for i in self.lane_members[a]:
                distance = crossing.own_m[0] - (self.s[i] + half[i])
                if not self._reactive[i] or distance < 0 or distance > 60:
                    continue
                if self.v[i] ** 2 > 2 * 5.0 * max(distance, 0.1):
                    continue  # too late to stop
                length = crossing.own_m[1] - crossing.own_m[0] + 2 * half[i]
                if must_wait(distance, length, self.v[i], crossing, *others, other_rank > rank[i]):
                    gap = np.array([max(distance - 1.5, 0.1)])
                    stop = style.follow(self.v[i : i + 1], gap, np.zeros(1))
                    acceleration[i] = min(acceleration[i], stop[0])

    # --- the record ----------------------------------------------------------------------------------

    def _note(self, yaw_rate: float) -> None:
        self.frames.append(
            Frame(
                self.ego_pose,
                self.ego_v,
                self.ego_a,
                yaw_rate,
                self.steering,
                self.scene.command_at_m(self._ego_on_route()[0]),
                self.poses,
                self.s,
                self.v,
                self.a,
                self.signal.copy(),
            )
        )

    def drive(self, events: tuple[Event, ...] = ()) -> Drive:
        """What has happened so far."""
        scene, frames = self.scene, self.frames
        count = len(frames)
        ego = np.array([frame.ego_pose for frame in frames])
        ego[:, 2] = np.unwrap(ego[:, 2])
        poses = np.array([frame.poses for frame in frames]).reshape(count, -1, 3)
        poses[..., 2] = np.unwrap(poses[..., 2], axis=0)
        lifted = np.zeros((*poses.shape[:2], 6))
        for i, thing in enumerate(scene.agents):
            lifted[:, i] = scene.ground.rest(poses[:, i], thing.size_m)
        return Drive(
            self.start_ns + np.round(np.arange(count) * DT_S * NS_PER_S).astype(np.int64),
            scene.ground.lift(ego, WHEELBASE_M, EGO_WIDTH_M * 0.8),
            np.array([frame.ego_v for frame in frames]),
            np.array([frame.ego_a for frame in frames]),
            np.array([frame.yaw_rate for frame in frames]),
            np.array([frame.steering for frame in frames]),
            np.array([frame.command for frame in frames], np.uint8),
            scene.standing,
            scene.agents,
            lifted,
            np.array([frame.accelerations for frame in frames]).reshape(count, -1),
            np.array([frame.signals for frame in frames]).reshape(count, -1),
            events,
        )


def leaders(
    lane: Lane,
    drivers: NDArray[np.intp],
    s: Array,
    d: Array,
    everyone: Array,
    sizes: Array,
    speeds: Array,
    margin_m: float = 0.25,
) -> tuple[Array, Array]:
    """Gap to whatever is ahead in the lane of each driver, and that thing's speed along the lane.

    Args:
        lane: the drivers' path.
        drivers: (N,) their numbers in `everyone`.
        s: stations of all agents' centers.
        d: their offsets.
        everyone: (M, 3) poses.
        sizes: (M, 2) lengths and widths.
        speeds: (M,)
        margin_m: how far apart two things must be to pass each other.

    Returns:
        (N,) gap in meters, `inf` where the lane is free, and (N,) speed of the leader.
    """
    station, offset, turned = lane.locate(everyone)
    along = np.abs(np.cos(turned)) * sizes[:, 0] / 2 + np.abs(np.sin(turned)) * sizes[:, 1] / 2
    across = np.abs(np.sin(turned)) * sizes[:, 0] / 2 + np.abs(np.cos(turned)) * sizes[:, 1] / 2
    ahead = station[None] - s[drivers, None]
    beside = np.abs(offset[None] - d[drivers, None])
    blocking = (ahead > 0.01) & (ahead < _SIGHT_M)
    blocking &= beside < across[None] + sizes[drivers, 1][:, None] / 2 + margin_m
    blocking[np.arange(len(drivers)), drivers] = False
    gap = np.where(blocking, ahead - along[None] - sizes[drivers, 0][:, None] / 2, np.inf)
    first = gap.argmin(axis=1)
    rows = np.arange(len(drivers))
    return gap[rows, first], (speeds * np.cos(turned))[first]


def must_wait(
    distance_m: float,
    length_m: float,
    v: float,
    crossing: Crossing,
    other_s: Array,
    other_half: Array,
    other_v: Array,
    goes_first: NDArray[np.bool_],
    margin_s: float = 1.3,
) -> bool:
    """Whether somebody who goes first will be in a crossing at the same time, or is in it already.

    Args:
        distance_m: own bumper to the crossing.
        length_m: what one must drive to clear it.
        v: own speed.
        crossing: the shared stretch.
        other_s: (N,) stations of the centers of those on the other path.
        other_half: (N,) half their lengths.
        other_v: (N,) their speeds.
        goes_first: (N,) who of them has priority.
        margin_s: least time between two in one place.
    """
    front = crossing.other_m[0] - (other_s + other_half)
    rear = crossing.other_m[1] - (other_s - other_half)
    inside = (front <= 0) & (rear > 0)
    speed = np.maximum(other_v, 0.1)
    comes, gone = front / speed, rear / speed
    # Starting from rest takes longer than driving on.
    arrive = distance_m / max(v, 4.0)
    leave = _time_to_drive(distance_m + length_m, v)
    meets = (arrive < gone + margin_s) & (comes < leave + margin_s)
    return bool(((rear > 0) & (inside | (goes_first & meets & (other_v > 0.3)))).any())


def _time_to_drive(distance_m: float, v: float, gain_mps2: float = 1.3, top_mps: float = 8.0) -> float:
    top = max(v, top_mps)
    ramp = (top**2 - v**2) / (2 * gain_mps2)
    if distance_m <= ramp:
        return (np.sqrt(v**2 + 2 * gain_mps2 * distance_m) - v) / gain_mps2
    return (top - v) / gain_mps2 + (distance_m - ramp) / top


def _lanes(plans: tuple[Plan, ...]) -> tuple[list[Lane], list[NDArray[np.intp]]]:
    """Distinct paths and the numbers of the agents on each."""
    members: dict[int, list[int]] = {}
    for i, plan in enumerate(plans):
        members.setdefault(id(plan.path), []).append(i)
    lanes = [Lane(plans[indices[0]].path) for indices in members.values()]
    return lanes, [np.array(indices) for indices in members.values()]


def _crossings(
    lanes: list[Lane], plans: tuple[Plan, ...], lane_of: list[NDArray[np.intp]]
) -> list[tuple[int, int, Crossing]]:
    """(own lane, other lane, crossing) for all pairs on which somebody must wait for somebody."""
    driven = [any(plans[i].reactive or plans[i].meets for i in members) for members in lane_of]
    result = []
    for a in range(len(lanes)):
        for b in range(len(lanes)):
            if a == b or not (driven[a] and driven[b]):
                continue
            low = min(plans[i].priority for i in lane_of[a])
            high = max(plans[i].priority for i in lane_of[b])
            crossing = crossing_of(lanes[a].path, lanes[b].path) if high > low else None
            if crossing is not None:
                result.append((a, b, crossing))
    return result
