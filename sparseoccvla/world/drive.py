"""What happened: the ego's and every agent's motion over time, commands and events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.stage import AgentLook
from sparseoccvla.world.things import Thing

DT_S = 0.05
BRAKE_LIGHT_MPS2 = -0.7  # brake lamps are lit below this acceleration
START_NS = 1_700_000_000 * NS_PER_S

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EgoSample:
    """The ego at one time."""

    stamp_ns: int
    world_from_base: Array  # (4, 4)
    speed_mps: float
    acceleration_mps2: float
    yaw_rate_radps: float
    steering_rad: float  # road-wheel angle, positive left


@dataclass(frozen=True)
class Box:
    """One annotated thing at one time."""

    name: str
    kind: str
    category: str  # nuScenes
    label: int  # Occ3D class
    color: str  # a key of things.PAINTS, or ""
    instance: int  # as in the instance pictures
    size_m: tuple[float, float, float]  # width, length, height: the order of nuScenes
    world_from_box: Array  # (4, 4), x forward, origin at the center
    velocity_mps: Array  # (3,) in the world frame
    moving: bool  # faster than 0.2 m/s

    @property
    def center_m(self) -> Array:
        return self.world_from_box[:3, 3]


@dataclass(frozen=True)
class Event:
    """Something that made the expert act, in the order in which it happened. Stamps are 0 where it never did.

    Frames from `visible_ns` until `react_ns` are those where only sight tells what the expert will do.
    """

    name: str  # the hazard's name, e.g. "pedestrian-0"; `Scene.make(remove=...)` takes it
    kind: str
    thing: str  # name of the thing to look at
    onset_ns: int  # it begins to be a hazard
    visible_ns: int  # from then on, first at least 50 pixels of it in a camera, at 704 x 396
    react_ns: int  # the expert first differs by 0.5 m/s^2 from its drive without it
    end_ns: int  # the expert is past it, or last held back by it

    def needs_sight(self, stamp_ns: int, horizon_s: float = 3.0) -> bool:
        """Whether the hazard is in sight, the expert has not acted on it yet, but will within the horizon."""
        soon_ns = self.react_ns - round(horizon_s * NS_PER_S)
        return 0 < max(self.visible_ns, soon_ns) <= stamp_ns < self.react_ns and self.visible_ns > 0


@dataclass(frozen=True)
class Drive:
    """Samples every `DT_S`; between them everything is interpolated.

    The ego's pose is that of base_link: the rear-axle center on the ground. Agents' poses are the ground
    points under their centers.
    """

    stamps_ns: NDArray[np.int64]  # (T,)
    ego: Array  # (T, 6) x, y, z, yaw, pitch, roll in the world frame; yaw is continuous
    speed_mps: Array  # (T,)
    acceleration_mps2: Array  # (T,)
    yaw_rate_radps: Array  # (T,)
    steering_rad: Array  # (T,)
    commands: NDArray[np.uint8]  # (T,) contracts.Command, source "route"
    standing: tuple[Thing, ...]
    agents: tuple[Thing, ...]  # A
    agent_poses: Array  # (T, A, 6)
    agent_accelerations_mps2: Array  # (T, A)
    agent_signals: NDArray[np.int8]  # (T, A) turn signal: 1 left, -1 right
    events: tuple[Event, ...] = ()

    @property
    def duration_s(self) -> float:
        return float(self.stamps_ns[-1] - self.stamps_ns[0]) / NS_PER_S

    @cached_property
    def instances(self) -> dict[str, int]:
        """The number of every thing in instance pictures, from 1."""
        return {thing.name: i + 1 for i, thing in enumerate((*self.standing, *self.agents))}

    def _blend(self, stamp_ns: int) -> tuple[int, float]:
        """Index and fraction of a time; outside the drive its first or last interval goes on."""
        after = np.searchsorted(self.stamps_ns, stamp_ns)
        index = int(np.clip(after, 1, len(self.stamps_ns) - 1)) - 1
        start, end = int(self.stamps_ns[index]), int(self.stamps_ns[index + 1])
        return index, (stamp_ns - start) / (end - start)

    def _at(self, samples: Array, stamp_ns: int) -> Array:
        index, part = self._blend(stamp_ns)
        return (1 - part) * samples[index] + part * samples[index + 1]

    def world_from_base(self, stamp_ns: int) -> Array:
        """4x4 pose of base_link."""
        return matrices_of(self._at(self.ego, stamp_ns))

    def ego_at(self, stamp_ns: int) -> EgoSample:
        """The ego at any time of the drive, or a few milliseconds beyond its ends."""
        return EgoSample(
            stamp_ns,
            self.world_from_base(stamp_ns),
            float(self._at(self.speed_mps, stamp_ns)),
            float(self._at(self.acceleration_mps2, stamp_ns)),
            float(self._at(self.yaw_rate_radps, stamp_ns)),
            float(self._at(self.steering_rad, stamp_ns)),
        )

    def command_at(self, stamp_ns: int) -> Command:
        index, part = self._blend(stamp_ns)
        return Command(int(self.commands[index + (part >= 1)]))

    def agent_poses_at(self, stamp_ns: int) -> Array:
        """(A, 6) poses of the agents."""
        return self._at(self.agent_poses, stamp_ns)

    def look_at(self, stamp_ns: int) -> AgentLook:
        """Where the agents are and which of their lamps are lit."""
        index, _ = self._blend(stamp_ns)
        # Signals blink 1.5 times a second.
        lit = (stamp_ns * 3 // NS_PER_S) % 2 == 0
        return AgentLook(
            self.agent_poses_at(stamp_ns),
            self.agent_accelerations_mps2[index] < BRAKE_LIGHT_MPS2,
            self.agent_signals[index] if lit else np.zeros_like(self.agent_signals[index]),
        )

    def boxes_at(self, stamp_ns: int) -> list[Box]:
        """Every annotated thing in the scene, near or far, hidden or not."""
        index, _ = self._blend(stamp_ns)
        poses = self.agent_poses_at(stamp_ns)
        steps = self.agent_poses[index + 1] - self.agent_poses[index]
        seconds = float(self.stamps_ns[index + 1] - self.stamps_ns[index]) / NS_PER_S
        boxes = [self._box(thing, thing.pose, np.zeros(3)) for thing in self.standing if thing.category]
        for thing, pose, step in zip(self.agents, poses, steps, strict=True):
            boxes.append(self._box(thing, pose, step[:3] / seconds))
        return boxes

    def _box(self, thing: Thing, pose: Array, velocity_mps: Array) -> Box:
        world_from_box = matrices_of(pose)
        length, width, height = thing.size_m
        world_from_box[:3, 3] += world_from_box[:3, 2] * height / 2
        return Box(
            thing.name,
            thing.kind,
            thing.category,
            thing.label,
            thing.color,
            self.instances[thing.name],
            (width, length, height),
            world_from_box,
            velocity_mps,
            bool(np.linalg.norm(velocity_mps) > 0.2),
        )
