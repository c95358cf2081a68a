"""Driving in the world step by step: look, plan, drive on, and see what happened. No ROS.

world = World(size=(352, 128))
seen = world.reset(seed=3, city="leftville")
while True:
    outcome = world.step(my_plan(seen))  # (6, 3) in base_link at seen.t0_ns
    if outcome.done:
        break
    seen = world.observe()
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    NS_PER_S,
    NUM_STEPS,
    STEP_S,
    CameraCalibration,
    DrivingCommand,
    EgoState,
    EncoderInput,
)
from sparseoccvla.ego_state import EgoHistory, MotionSample
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse, planar_pose
from sparseoccvla.world.boxes import clearance_m, corners_m
from sparseoccvla.world.drive import DT_S, Drive
from sparseoccvla.world.edits import Edit, edited_scene
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.ego import EGO_LENGTH_M, EGO_WIDTH_M
from sparseoccvla.world.expert import Expert
from sparseoccvla.world.follow import Follower
from sparseoccvla.world.ground import Channel
from sparseoccvla.world.render import CameraImage, Renderer
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.simulate import Simulation

MET_M = 15.0  # a hazard nearer than this was met
OFF_ROAD_M = 1.0  # farther from the road with any corner is an end
OFF_ROUTE_M = 8.0  # so is farther from the route
_END_M = 20.0  # of the route
_PAST_NS = 3 * NS_PER_S  # more than EgoState looks back
_EGO_SIZE_M = np.array([EGO_LENGTH_M, EGO_WIDTH_M])
_NEAR_M = 40.0  # farther things can't touch the ego
_TRUNK_M = 0.5  # what there is of a tree to drive into
_SOLID = ("building", "lamp", "sign", "shelter")  # of what is not annotated


@dataclass(frozen=True)
class Observation:
    """What the ego has at one time. Cameras fire shortly before it, as on a vehicle."""

    now_ns: int
    t0_ns: int  # stamp of the first present camera; a plan is in base_link then
    images: dict[str, CameraImage]  # by camera; one that lost its picture is not in it
    cameras: dict[str, CameraCalibration]  # all, for the size of the pictures
    inputs: EncoderInput  # the same pictures; missing ones are black and not valid
    ego: EgoState  # at t0
    command: DrivingCommand  # in force at t0, of the route


@dataclass(frozen=True)
class Collision:
    """The ego's box touched another one."""

    stamp_ns: int
    name: str
    kind: str
    where: str  # on the ego: "front", "rear" or "side"
    ego_speed_mps: float

    @property
    def at_fault(self) -> bool:
        """Whether the ego did it: not while it stands, and not if it is hit from behind."""
        return self.ego_speed_mps > 0.05 and self.where != "rear"


@dataclass(frozen=True)
class Comfort:
    """The strongest of a stretch."""

    acceleration_mps2: float  # along, at most 0 if it never accelerates
    braking_mps2: float  # positive
    lateral_mps2: float
    jerk_mps3: float
    yaw_rate_radps: float


@dataclass(frozen=True)
class Outcome:
    """What happened in one step. It ends early where something ends the drive."""

    start_ns: int
    end_ns: int
    collision: Collision | None
    off_road_m: float  # farthest any corner of the ego's box was from the road, 0 on it
    off_route_m: float  # farthest base_link was from the route
    progress_m: float  # along the route
    comfort: Comfort
    hazards_met: tuple[str, ...]  # the ego came near them for the first time
    reason: str  # why the drive is over: "collision", "off road", "off route", "arrived", "time", or ""

    @property
    def done(self) -> bool:
        return bool(self.reason)


class _Obstacles:
    """All that the ego can run into: agents, what is annotated, and what else is solid."""

    def __init__(self, scene: Scene) -> None:
        trees = [thing for thing in scene.standing if thing.kind == "tree"]
        solid = [thing for thing in scene.standing if thing.category or thing.kind in _SOLID]
        self._things = (*scene.agents, *solid, *trees)
        self._poses = np.array([thing.pose[[0, 1, 3]] for thing in (*solid, *trees)]).reshape(-1, 3)
        sizes = [thing.size_m[:2] for thing in solid] + [(_TRUNK_M, _TRUNK_M)] * len(trees)
        self._sizes = np.array(sizes).reshape(-1, 2)

    def hit(self, sim: Simulation) -> Collision | None:
        """What the ego's box overlaps most, if anything."""
        poses = np.concatenate([sim.poses, self._poses])
        sizes = np.concatenate([sim.size[:, :2], self._sizes])
        near = np.nonzero(np.abs(poses[:, :2] - sim.ego_box[:2]).max(axis=1) < _NEAR_M)[0]
        gaps = clearance_m(sim.ego_box, _EGO_SIZE_M, poses[near], sizes[near])
        if len(gaps) == 0 or gaps.min() >= 0:
            return None
        hit = int(near[gaps.argmin()])
        where = _side_of(sim.ego_box, corners_m(poses[hit], sizes[hit]))
        # Its speed before: a collision is judged by what led to it.
        return Collision(
            sim.now_ns, self._things[hit].name, self._things[hit].kind, where, sim.frames[-2].ego_v
        )


def _side_of(ego_box: NDArray[np.float64], corners: NDArray[np.float64]) -> str:
    """On which side of the ego a rectangle (4, 2) that just touches it is: where it reaches in least."""
    c, s = np.cos(ego_box[2]), np.sin(ego_box[2])
    x, y = ((corners - ego_box[:2]) @ np.array([[c, -s], [s, c]])).T
    half_length, half_width = _EGO_SIZE_M / 2
    depths = {
        "front": half_length - x.min(),
        "rear": x.max() + half_length,
        "side": min(half_width - y.min(), y.max() + half_width),
    }
    return min(depths, key=lambda where: depths[where])


class World:
    """One drive at a time; equal calls give equal drives.

    Args:
        size: of pictures, (width, height).
        device: that renders.
        effects: of the cameras; none by default.
    """

    def __init__(
        self,
        size: tuple[int, int] = (704, 396),
        device: str | torch.device = "cpu",
        effects: CameraEffects | None = None,
    ) -> None:
        self.size = size
        self.device = device
        self.effects = effects or CameraEffects()
        self._sim: Simulation | None = None

    def reset(
        self,
        seed: int,
        city: str = "rightville",
        *,
        edit: Edit | None = None,
        warmup_s: float = 2.1,
        limit_s: float = 20.0,
    ) -> Observation:
        """Begin a drive.

        Args:
            seed: of scene and traffic.
            city: rightville or leftville.
            edit: something to change in the scene.
            warmup_s: driven by the expert first; by default all past poses of EgoState are then known.
            limit_s: the drive ends then, from the start of the warm-up.

        Raises:
            InputError: no such city or edit, or a negative seed.
        """
        scene = Scene.make(seed, city)
        self.scene = edited_scene(scene, edit) if edit else scene
        self.limit_s = limit_s
        self._sim = Simulation(self.scene)
        self._expert = Expert(self.scene)
        self._cameras = Cameras(Renderer(self.scene, self.device), self.effects)
        self._drive: Drive | None = None
        self._met: set[str] = set()
        self._obstacles = _Obstacles(self.scene)
        names = [thing.name for thing in self.scene.agents]
        self._hazard_columns = {
            hazard.name: [names.index(thing.name) for thing in hazard.things] for hazard in self.scene.hazards
        }
        for _ in range(round(warmup_s / DT_S)):
            self._sim.step(self._expert.control(self._sim))
        return self.observe()

    @property
    def sim(self) -> Simulation:
        """The drive's present and past.

        Raises:
            InputError: no drive has begun.
        """
        if self._sim is None:
            raise InputError("this world has no drive yet; call reset first")
        return self._sim

    @property
    def t0_ns(self) -> int:
        """What a plan made now is for: the stamp of cam_front."""
        return self.sim.now_ns + self._cameras.rig.cameras[0].offset_ns

    @property
    def drive(self) -> Drive:
        """What has happened so far."""
        if self._drive is None or len(self._drive.stamps_ns) != len(self.sim.frames):
            self._drive = self.sim.drive()
        return self._drive

    def observe(self, now_ns: int | None = None) -> Observation:
        """What the ego sees and knows, now or at an earlier time of the drive: a memory can be filled so.

        Raises:
            InputError: no drive has begun, that time has not come, or no camera has a picture.
        """
        now_ns = self.sim.now_ns if now_ns is None else now_ns
        drive = self.drive
        if not self.sim.start_ns <= now_ns <= self.sim.now_ns:
            raise InputError(
                f"can't observe at {now_ns} ns: the drive lasts from {self.sim.start_ns} to "
                f"{self.sim.now_ns} ns so far"
            )
        images = {}
        for camera in self._cameras.rig.cameras:
            image = self._cameras.picture(drive, camera.name, now_ns + camera.offset_ns, self.size)
            if image is not None:
                images[camera.name] = image
        if not images:
            raise InputError("no camera has a picture; are all dropped?")
        t0_ns = next(iter(images.values())).stamp_ns
        cameras = {camera.name: camera.calibration(self.size) for camera in self._cameras.rig.cameras}
        command = DrivingCommand(t0_ns, drive.command_at(t0_ns), "route")
        return Observation(
            now_ns,
            t0_ns,
            images,
            cameras,
            _encoder_input(drive, t0_ns, images, cameras),
            EgoHistory(motion_samples(drive, t0_ns - _PAST_NS)).at(t0_ns),
            command,
        )

    def step(
        self,
        trajectory: NDArray[np.floating],
        duration_s: float = STEP_S,
        t0_ns: int | None = None,
    ) -> Outcome:
        """Follow a plan for a while, among agents that react.

        Args:
            trajectory: (S, 3) x_m, y_m, yaw_rad in base_link at t0, as a plan's.
            duration_s: how long, in steps of 0.05 s.
            t0_ns: what the plan is for; by default the stamp of cam_front now.

        Raises:
            InputError: no drive has begun, or an impossible duration.
            ContractError: not such a trajectory.
        """
        ticks = round(duration_s / DT_S)
        if ticks < 1 or abs(ticks * DT_S - duration_s) > 1e-6:
            raise InputError(f"duration_s is {duration_s}, wanted a multiple of {DT_S:g} s above 0")
        t0_ns = self.t0_ns if t0_ns is None else t0_ns
        then = self.drive.ego_at(t0_ns)
        follower = Follower(trajectory, t0_ns, then.world_from_base, then.speed_mps)
        return self._advance(ticks, follower)

    def step_expert(self, duration_s: float = STEP_S) -> Outcome:
        """As `step`, with the expert at the wheel: the upper bound of what a plan can do."""
        return self._advance(round(duration_s / DT_S), None)

    def expert_plan(self) -> NDArray[np.float64]:
        """(S, 3) what the expert would do from now on, as a plan for the stamp of cam_front now."""
        sim = self.sim
        shared = (sim.scene, sim.plans, sim.lanes, sim.ego_lane, *sim.frames)
        memo = {id(part): part for part in shared}
        ahead, expert = copy.deepcopy((sim, self._expert), memo)
        for _ in range(round(NUM_STEPS * STEP_S / DT_S)):
            ahead.step(expert.control(ahead))
        return future_of(ahead.drive(), self.t0_ns)

    def _advance(self, ticks: int, follower: Follower | None) -> Outcome:
        sim = self.sim
        first = len(sim.frames) - 1
        start, _, _ = sim.ego_lane.locate(sim.ego_pose[None])
        off_road = off_route = 0.0
        collision, reason, met = None, "", []
        station = start
        for _ in range(ticks):
            # The expert looks on even where it does not drive: it knows what it has seen.
            expert = self._expert.control(sim)
            sim.step(expert if follower is None else follower.control(sim))
            station, offset, _ = sim.ego_lane.locate(sim.ego_pose[None])
            off_road = max(off_road, self._off_road_m())
            off_route = max(off_route, abs(float(offset[0])))
            met += self._newly_met()
            collision = self._obstacles.hit(sim)
            reason = self._reason(collision, off_road, off_route, float(station[0]))
            if reason:
                break
        return Outcome(
            sim.start_ns + round(first * DT_S * NS_PER_S),
            sim.now_ns,
            collision,
            off_road,
            off_route,
            float(station[0] - start[0]),
            self._comfort(first),
            tuple(met),
            reason,
        )

    def _reason(
        self, collision: Collision | None, off_road_m: float, off_route_m: float, station_m: float
    ) -> str:
        if collision is not None:
            return "collision"
        if off_road_m > OFF_ROAD_M:
            return "off road"
        if off_route_m > OFF_ROUTE_M:
            return "off route"
        if station_m > self.scene.ego_path.length_m - _END_M:
            return "arrived"
        return "time" if self.sim.t_s > self.limit_s - DT_S / 2 else ""

    def _off_road_m(self) -> float:
        corners = corners_m(self.sim.ego_box, _EGO_SIZE_M)
        return max(0.0, -float(self.scene.ground.sample(corners)[Channel.ROAD].min()))

    def _newly_met(self) -> list[str]:
        sim = self.sim
        new = []
        for name, columns in self._hazard_columns.items():
            if name in self._met:
                continue
            gaps = clearance_m(sim.ego_box, _EGO_SIZE_M, sim.poses[columns], sim.size[columns, :2])
            if gaps.min() < MET_M:
                self._met.add(name)
                new.append(name)
        return new

    def _comfort(self, first: int) -> Comfort:
        frames = self.sim.frames[first:]
        a = np.array([frame.ego_a for frame in frames])
        speed = np.array([frame.ego_v for frame in frames])
        rate = np.array([frame.yaw_rate for frame in frames])
        return Comfort(
            float(a[1:].max()),
            float(-a[1:].min()),
            float(np.abs(speed * rate)[1:].max()),
            float(np.abs(np.diff(a)).max() / DT_S),
            float(np.abs(rate[1:]).max()),
        )


def motion_samples(drive: Drive, first_ns: int = 0) -> tuple[MotionSample, ...]:
    """The drive from `first_ns` on as odometry: exact, in a frame in which it starts at the origin."""
    odom_from_world = inverse(drive.world_from_base(int(drive.stamps_ns[0])))
    samples = []
    for stamp_ns in drive.stamps_ns[drive.stamps_ns >= first_ns].tolist():
        ego = drive.ego_at(stamp_ns)
        pose = odom_from_world @ ego.world_from_base
        samples.append(MotionSample(stamp_ns, pose, ego.speed_mps, ego.yaw_rate_radps, ego.steering_rad))
    return tuple(samples)


def future_of(drive: Drive, t0_ns: int) -> NDArray[np.float64]:
    """(S, 3) where the ego is every STEP_S after t0, in base_link at t0; the drive must last that long."""
    base_from_world = inverse(drive.world_from_base(t0_ns))
    ahead_ns = [t0_ns + round((i + 1) * STEP_S * NS_PER_S) for i in range(NUM_STEPS)]
    return np.array([planar_pose(base_from_world @ drive.world_from_base(t_ns)) for t_ns in ahead_ns])


def _encoder_input(
    drive: Drive, t0_ns: int, images: dict[str, CameraImage], cameras: dict[str, CameraCalibration]
) -> EncoderInput:
    world_from_odom = drive.world_from_base(int(drive.stamps_ns[0]))
    odom_from_world = inverse(world_from_odom)
    height, width = next(iter(images.values())).rgb.shape[:2]
    pictures = np.zeros((len(cameras), height, width, 3), np.uint8)
    image_from_odom = np.tile(np.eye(4), (len(cameras), 1, 1))
    valid = np.zeros(len(cameras), bool)
    for row, (name, camera) in enumerate(cameras.items()):
        if name not in images:
            continue
        odom_from_camera = odom_from_world @ drive.world_from_base(images[name].stamp_ns)
        odom_from_camera = odom_from_camera @ camera.base_from_camera
        pictures[row] = images[name].rgb
        image_from_odom[row, :3] = camera.image_from_camera @ inverse(odom_from_camera)[:3]
        valid[row] = True
    odom_from_base = odom_from_world @ drive.world_from_base(t0_ns)
    return EncoderInput(t0_ns, pictures, image_from_odom, odom_from_base, valid)
